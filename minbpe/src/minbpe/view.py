"""Show how tokenizers cut a text, as an HTML page: `python -m minbpe.view a.txt --tokenizer gpt2`.

The page colours the text by token, for several tokenizers side by side, and draws the merge tree of
the token under the cursor. It is a single file that loads nothing. `view.html`, beside this module,
is its layout and program; this module works out what it shows:

    {"source": "hug.txt", "note": "", "characters": 3, "panes": [
        {"name": "tiny", "kind": "merges", "vocabSize": 258, "merges": 2, "ids": [257],
         "table": [[103, "67"], [117, "75"], [104, "68"], [256, 104, 117], [257, 256, 103]]}]}

A row of the table is a token without parts, with its bytes in hex, or a token and the tokens that
it is merged from; parts come first, and only what the text needs is there.
"""

import argparse
import base64
import hashlib
import html
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

from minbpe.base import Tokenizer
from minbpe.command import Parser, add_tokenizer, load_tokenizer, run_command
from minbpe.documents import open_stdin, read_text
from minbpe.errors import DataError, UsageError
from minbpe.files import check_writable, shorten, whole_file
from minbpe.gpt import RankTokenizer

LIMIT = 20_000
"""Characters on a page, unless --limit says otherwise; each token is an element of the page."""

MOST = 500_000
"""The largest --limit, for which a browser takes some ten seconds."""

Row = list[int | str]


# ---- merge trees


def merge_parts(tokenizer: Tokenizer) -> Callable[[int], list[int]]:
    """Return a function from a token to the tokens it is merged from; [] for a byte.

    With trained merges `{(104, 117): 256}` it maps 256 to [104, 117]. Ranks name no merges: a token
    of theirs is taken apart when asked for, as all 200,000 of o200k would take seconds.
    """
    if not is_ranked(tokenizer):
        pairs = {idx: list(pair) for pair, idx in tokenizer.merges.items()}
        return lambda idx: pairs.get(idx, [])
    ranks = {token: idx for idx, token in tokenizer.vocab.items()}
    vocab = tokenizer.vocab
    return lambda idx: [ranks[part] for part in last_parts(vocab.get(idx, b""), ranks)]


def is_ranked(tokenizer: Tokenizer) -> bool:
    """Return whether pairs merge by the rank of their bytes, rather than by a list of merges."""
    return isinstance(tokenizer, RankTokenizer)


def last_parts(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Return the two parts that the last merge into `token` joins; [] for a byte or less.

    Ranks h 0, u 1, g 2, hu 3, ug 4, hug 5 take b"hug" apart into [b"hu", b"g"]. It encodes the
    token, but for the last merge. A token that no merge makes (it is only found as a whole word)
    gives the three or more parts where merging stops.
    """
    parts = [token[i : i + 1] for i in range(len(token))] if len(token) > 1 else []
    while len(parts) > 2:
        joined = (parts[i] + parts[i + 1] for i in range(len(parts) - 1))
        found = [(ranks[pair], i) for i, pair in enumerate(joined) if pair in ranks]
        if not found:
            break
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def token_table(
    ids: Iterable[int], parts_of: Callable[[int], list[int]], bytes_of: Callable[[int], bytes]
) -> list[Row]:
    """Return a row for each token that `ids` are made of, parts before what they make."""
    rows: dict[int, Row] = {}
    waiting = list(dict.fromkeys(ids))
    while waiting:  # a stack of our own: a token of 10,000 letters can be as many merges deep
        idx = waiting[-1]
        parts = parts_of(idx)
        missing = [part for part in parts if part not in rows]
        if idx not in rows and not missing:
            rows[idx] = [idx, *parts] if parts else [idx, bytes_of(idx).hex()]
        if missing:
            waiting += missing
        else:
            waiting.pop()
    return list(rows.values())


# ---- the page


def pane(tokenizer: Tokenizer, name: str, text: str) -> dict[str, Any]:
    """Return what the page shows of one tokenizer (see the module); special tokens are text."""
    ids = tokenizer.encode_ordinary(text)
    table = token_table(ids, merge_parts(tokenizer), lambda idx: tokenizer.decode_bytes([idx]))
    ranked = is_ranked(tokenizer)
    return {
        "name": name,
        "kind": "ranks" if ranked else "merges",
        "vocabSize": tokenizer.vocab_size,
        "merges": 0 if ranked else len(tokenizer.merges),
        "ids": ids,
        "table": table,
    }


def render_page(
    text: str, tokenizers: Mapping[str, Tokenizer], *, source: str = "text", note: str = ""
) -> str:
    """Return the page of `text` under each of `tokenizers`, by the names to show.

    `source` is the page's heading; `note` a remark under it. Raises DataError for an empty text.
    """
    if not text:
        raise DataError(f"{source} is empty, there is nothing to show")
    data = {
        "source": source,
        "note": note,
        "characters": len(text),
        "panes": [pane(tokenizer, name, text) for name, tokenizer in tokenizers.items()],
    }
    template = resources.files("minbpe").joinpath("view.html").read_text("utf-8")
    values = {
        "title": html.escape(f"{source} in tokens"),
        "policy": content_policy(template),
        "data": embedded(data),
    }
    # In one pass, so that a text that holds "@data@" stays as it is.
    return re.sub("@(title|policy|data)@", lambda match: values[match[1]], template)


def embedded(data: object) -> str:
    r"""Return JSON that may stand inside <script>: `"</p>"` becomes `"\u003c/p\u003e"`."""
    escapes = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(escapes)


def content_policy(template: str) -> str:
    """Return the page's content security policy: its own script and style, and no network.

    Text is never made into markup; should it ever be, the browser still runs nothing of it.
    """
    allowed = ["default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    for name, opening in (("script", '<script type="module">'), ("style", "<style>")):
        content = template.partition(opening)[2].partition(f"</{name}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode()
        allowed.append(f"{name}-src 'sha256-{digest}'")
    return "; ".join(allowed)


# ---- the command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; raises UsageError."""
    told = (
        "Show the tokens of a text as an HTML page. Special tokens in it are shown as plain text."
    )
    parser = Parser("python -m minbpe.view", told)
    parser.add_argument("text", metavar="FILE", help="a text in UTF-8, or - for stdin")
    add_tokenizer(parser, several=True)
    parser.add_argument(
        "--out", type=Path, default="view.html", help="the page to write (default: view.html)"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=LIMIT,
        metavar="N",
        help=f"show the first N characters, at most {MOST} (default: {LIMIT})",
    )
    args = parser.parse_args(argv)
    if not args.tokenizer:
        raise UsageError("--tokenizer is needed, once or more: a file, or a name such as gpt2")
    if not 1 <= args.limit <= MOST:
        raise UsageError(f"--limit {args.limit} must be from 1 to {MOST}")
    return args


def read_start(source: str, limit: int) -> tuple[str, bool]:
    """Return the first `limit` characters of a file or of stdin (`-`), and whether more follow.

    Reads little more than that. Raises UsageError for a file that cannot be read, DataError for
    bytes that are no UTF-8.
    """
    text = ""
    try:
        with nullcontext(open_stdin()) if source == "-" else Path(source).open("rb") as file:
            for chunk in read_text(file, shown_name(source)):
                text += chunk
                if len(text) > limit:
                    break
    except OSError as error:
        raise UsageError(f"{shorten(source)} cannot be read: {error.strerror}") from None
    return text[:limit], len(text) > limit


def shown_name(source: str) -> str:
    """Return what to call the text."""
    return "stdin" if source == "-" else Path(source).name


def short_names(sources: Iterable[str]) -> dict[str, str]:
    """Map each source to the name to show: a file's without folder and ending, if that is unique.

    `["out/a.model", "gpt2"] -> {"out/a.model": "a", "gpt2": "gpt2"}`
    """
    distinct = list(dict.fromkeys(sources))
    short = [re.sub(r"\.(model|tiktoken)$", "", Path(source).name) or source for source in distinct]
    return {
        s: name if short.count(name) == 1 else s for s, name in zip(distinct, short, strict=True)
    }


def run(args: argparse.Namespace) -> None:
    """Write the page that `args` ask for; say so, and what it leaves out."""
    check_writable(args.out)
    text, cut = read_start(args.text, args.limit)
    name = shown_name(args.text)
    note = f"Only the first {len(text):,} characters are shown; the text goes on." if cut else ""
    tokenizers = {short: load_tokenizer(s) for s, short in short_names(args.tokenizer).items()}
    page = render_page(text, tokenizers, source=name, note=note)
    with whole_file(args.out) as file:
        file.write(page.encode("utf-8"))
    if cut:
        print(
            f"minbpe.view: {name}: only the first {len(text):,} characters are shown; "
            f"--limit shows more, up to {MOST:,}",
            file=sys.stderr,
        )
    print(f"wrote {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return run_command(run, parse, argv)


if __name__ == "__main__":
    sys.exit(main())
