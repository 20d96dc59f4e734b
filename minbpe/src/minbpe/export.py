r"""Write a tokenizer in tiktoken's or Hugging Face's format, with the same ids there.

    python -m minbpe.export --tokenizer NAME.model --format tiktoken --out NAME.tiktoken
    python -m minbpe.export --tokenizer cl100k_base --format huggingface --out tokenizer.json

tiktoken has no file for a whole tokenizer. Its ranks go to NAME.tiktoken, the rest to
NAME.tiktoken.json beside it, and this puts them together:

    from tiktoken import Encoding, load

    more = json.load(open("NAME.tiktoken.json"))
    ranks = load.load_tiktoken_bpe("NAME.tiktoken", more["sha256"])
    Encoding(
        "NAME",
        pat_str=more["pattern"],
        mergeable_ranks=ranks,
        special_tokens=more["special_tokens"],
    )

Hugging Face's tokenizer.json is whole: `tokenizers.Tokenizer.from_file("tokenizer.json")`. It
always looks for special tokens, as `encode(text, "all")` here.

What cannot be said in a format is refused: see `minbpe.portable` for patterns, `minbpe.recover`
for merges.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from minbpe import command
from minbpe.base import Tokenizer
from minbpe.errors import DataError
from minbpe.files import check_writable
from minbpe.gpt import RankTokenizer
from minbpe.huggingface import render_tokenizer_json
from minbpe.model_file import render_token, write_whole
from minbpe.portable import check_portable
from minbpe.pretokens import PATTERNS
from minbpe.published import WHOLE_TEXT, companion
from minbpe.rank_files import render_tiktoken
from minbpe.recover import differing_token, recover_merges
from minbpe.textbook import Pair


def export_tiktoken(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write `path` with the ranks, and `path`.json with pattern, special tokens and sha256.

    Raises DataError for a tokenizer that tiktoken can't express, UsageError when the folder is
    missing, ResourceError when the disk refuses.
    """
    ranks = _ranks(tokenizer)
    if not isinstance(tokenizer, RankTokenizer):
        _merges(tokenizer, ranks)
    _check_prefixes(tokenizer.special_tokens)
    pattern = tokenizer.pattern
    check_portable(pattern or WHOLE_TEXT)
    if not pattern:
        pattern = WHOLE_TEXT
    elif pattern not in PATTERNS.values():
        # tiktoken drops text that the pattern leaves unmatched; here it makes pieces.
        pattern = rf"{pattern}|(?:(?!{pattern})[\s\S])+"
    content = render_tiktoken(ranks)
    more = {
        "pattern": pattern,
        "special_tokens": tokenizer.special_tokens,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_whole(Path(path), content)
    write_whole(companion(Path(path)), _json(more))


def _check_prefixes(special_tokens: dict[str, int]) -> None:
    """Raise DataError when a special token begins another: tiktoken finds either, by its hashes."""
    in_order = sorted(special_tokens)
    for text, longer in pairwise(in_order):
        if longer.startswith(text):
            raise DataError(
                f"special token {text!r} begins {longer!r}: here and in Hugging Face's format the "
                "longer is found, in tiktoken either; give one another text"
            )


def export_huggingface(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a tokenizer.json for Hugging Face's tokenizers and transformers.

    Raises DataError for a tokenizer that the format can't express, UsageError when the folder is
    missing, ResourceError when the disk refuses.
    """
    ranks = _ranks(tokenizer)
    merges = _merges(tokenizer, ranks)
    if (odd := differing_token(ranks, merges)) is not None:
        raise DataError(
            f"token {odd}, {render_token(tokenizer.vocab[odd])}, is out of reach of merges, but "
            "two tokens spell it: Hugging Face's merges can't say that (see minbpe.recover)"
        )
    if tokenizer.pattern:
        check_portable(tokenizer.pattern)
    content = render_tokenizer_json(tokenizer.pattern, ranks, merges, tokenizer.special_tokens)
    write_whole(Path(path), _json(content))


def _ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Return tokens to ids; raise DataError when two have the same bytes."""
    ranks: dict[bytes, int] = {}
    for idx, token in tokenizer.vocab.items():
        if token in ranks:
            raise DataError(
                f"tokens {ranks[token]} and {idx} are both {render_token(token)}; other formats "
                "tell tokens by their bytes"
            )
        ranks[token] = idx
    return ranks


def _merges(tokenizer: Tokenizer, ranks: dict[bytes, int]) -> dict[Pair, int]:
    """Return the merges that the ranks imply; raise DataError unless the tokenizer has the same."""
    merges = recover_merges(ranks)
    if not isinstance(tokenizer, RankTokenizer) and merges != tokenizer.merges:
        odd = min(idx for pair, idx in tokenizer.merges.items() if merges.get(pair) != idx)
        raise DataError(
            f"token {odd}, {render_token(tokenizer.vocab[odd])}, is not made of the parts that "
            "earlier merges leave it in: no training gives that, and other formats can't say it"
        )
    return merges


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8")


# ---- the command line

FORMATS = {"tiktoken": export_tiktoken, "huggingface": export_huggingface}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; raises UsageError."""
    parser = command.Parser("python -m minbpe.export", "Write a tokenizer in another format.")
    command.add_tokenizer(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="whose format")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    command.add_json(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Read the tokenizer, write it in the other format, say what was written."""
    files = [args.out, companion(args.out)] if args.format == "tiktoken" else [args.out]
    for path in files:
        check_writable(path)
    tokenizer = command.load_tokenizer(args.tokenizer)
    FORMATS[args.format](tokenizer, args.out)
    results = {
        "format": args.format,
        "files": [str(path) for path in files],
        "tokens": len(tokenizer.vocab),
        "special_tokens": list(tokenizer.special_tokens),
    }
    command.print_results(results, f"wrote {args.out}", as_json=args.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command.run_command(run, parse, argv)


if __name__ == "__main__":
    sys.exit(main())
