"""Compare ids with tiktoken's on a million strings, over all published encodings at hand.

    python benchmarks/million_strings.py --out results/million_strings.json

A string is of one of a dozen kinds in turn, from random code points to slices of real texts (those
of $MLE_DATA; without it these kinds are left out). The same seed gives the same strings. For each
encoding the results have the strings, characters and tokens by kind, how many strings got other
ids than from tiktoken or did not come back, the first of those, and a SHA-256 of all ids.

Python's `regex` and tiktoken are each built with a version of Unicode, and call some characters by
other names when these differ. A string that is equal without such characters is counted apart.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import regex

from minbpe import command
from minbpe.errors import UsageError
from minbpe.gpt import RankTokenizer
from minbpe.model_file import write_whole
from minbpe.published import PUBLISHED, fill_tiktoken_cache, load_ranks

BATCH = 1000
"""Strings between two looks at the progress bar."""

SHOWN = 5
"""Mismatches that the results list for an encoding."""

SPACES = (
    " " * 6 + "\n\n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\u200b\ufeff"
)
NUMERALS = "0123456789" * 3 + "½²Ⅷ٣४一〇𝟘①,._-+e %"
FACES = "😀🤖👍🏽👩👨👧\u200d\ufe0f🇩🇪❤☀⭐🏳🌈#*1\u20e3 "
CODE = """def f(x, y=None): return x**2 + y if y else {"a": [1, 2]} ; // /* */ <a class='x'> </a>
for (int i = 0; i < n; ++i) { a[i] += 0xFF; } #include <stdio.h> SELECT * FROM t WHERE id != 7
__init__ self.x => -> :: && || !== ... \\n \\t \\u00e9 $HOME ${x} @decorator `code` ~~~ === ---"""
CASES = (
    "don't DON'T I'll we'VE they're 'tis O'Neil's 'S 'ſ 'LL x'd ''s camelCase HTTPServer ǅ ß İ ı"
)


def from_alphabet(letters: str, most: int = 40) -> Callable[[random.Random], str]:
    """Return a maker of strings of random letters."""
    return lambda rng: "".join(rng.choices(letters, k=rng.randint(1, most)))


def from_pieces(pieces: str, most: int = 12) -> Callable[[random.Random], str]:
    """Return a maker of strings of random words, joined by this and that."""
    words = pieces.split()

    def make(rng: random.Random) -> str:
        joints = rng.choices(["", " ", "  ", "\n", "\n    ", "\t", "\r\n", " \n \n"], k=most)
        count = rng.randint(1, most)
        return "".join(rng.choice(words) + joint for joint in joints[:count])

    return make


def any_character(rng: random.Random) -> str:
    """Return any code point of Unicode but a surrogate, assigned or not."""
    while 0xD800 <= (code := rng.randrange(0x110000)) <= 0xDFFF:
        pass
    return chr(code)


def a_known_character(rng: random.Random) -> str:
    """Return a code point that Unicode has had a meaning for since long ago (version 3.2)."""
    while unicodedata.ucd_3_2_0.category(found := any_character(rng)) in ("Cn", "Co"):
        pass
    return found


def neighbours(rng: random.Random) -> str:
    """Return letters of one script: code points within 64 of each other, and some spaces."""
    first = rng.randrange(0x21, 0x2FFF) & ~0x3F
    letters = [chr(max(0x21, first + rng.randrange(64))) for _ in range(rng.randint(1, 40))]
    return "".join(" " if rng.random() < 0.15 else letter for letter in letters)


def lone_surrogates(rng: random.Random) -> str:
    """Return text with halves of surrogate pairs, in and out of order."""
    pieces = ["a", " ", "é", "\ud83d", "\ude00", "\ud83d\ude00", "\udfff", "x\ud800", "\n"]
    return "".join(rng.choices(pieces, k=rng.randint(1, 15)))


def runs(rng: random.Random) -> str:
    """Return long runs of one character each."""
    return "".join(
        rng.choice("a =-_*#0.\n\t/é中😀") * rng.randint(1, 60) for _ in range(rng.randint(1, 4))
    )


def special_tokens(rng: random.Random) -> str:
    """Return text with the names of special tokens, whole and torn."""
    names = ["<|endoftext|>", "<|fim_prefix|>", "<|endofprompt|>", "<|", "|>", "endoftext", " a"]
    return "".join(rng.choices(names, k=rng.randint(1, 8)))


KINDS: dict[str, Callable[[random.Random], str]] = {
    "any code points": lambda rng: "".join(any_character(rng) for _ in range(rng.randint(1, 20))),
    "known code points": lambda rng: "".join(
        a_known_character(rng) for _ in range(rng.randint(1, 20))
    ),
    "one script": neighbours,
    "code": from_pieces(CODE),
    "spaces": lambda rng: "".join(rng.choices(SPACES + "ab.", k=rng.randint(1, 30))),
    "numbers": from_alphabet(NUMERALS),
    "emoji": from_alphabet(FACES, 20),
    "cases and contractions": from_pieces(CASES),
    "lone surrogates": lone_surrogates,
    "runs": runs,
    "special tokens": special_tokens,
}
TEXTS = {
    "languages": "multilingual/udhr_multiscript.jsonl",
    "web pages": "pretrain/c4_sample_a.jsonl",
    "encyclopedia": "wikitext-2/test.txt",
    "stories": "pretrain/tinystories_2mib.txt",
}
"""Real texts in $MLE_DATA, of which slices are taken."""


def real_kinds() -> dict[str, Callable[[random.Random], str]]:
    """Return makers of slices of the real texts that are at hand."""
    folder = Path(os.environ.get("MLE_DATA", ""))
    found = {}
    for kind, name in TEXTS.items():
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".jsonl":
                text = "\n".join(json.loads(line)["text"] for line in text.splitlines())
            found[kind] = _slices(text)
    return found


def _slices(text: str) -> Callable[[random.Random], str]:
    def make(rng: random.Random) -> str:
        start = rng.randrange(len(text))
        return text[start : start + rng.randint(1, 200)]

    return make


def strings(
    kinds: dict[str, Callable[[random.Random], str]], count: int, seed: str
) -> Iterator[tuple[str, str]]:
    """Yield kind and string, each kind in turn."""
    rng = random.Random(seed)
    names = list(kinds)
    for k in range(count):
        kind = names[k % len(names)]
        yield kind, kinds[kind](rng)


def tiktokens(name: str) -> Any:
    """Return tiktoken's encoding, without the network."""
    import tiktoken

    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        fill_tiktoken_cache(name, Path(folder), download=False)
        os.environ["TIKTOKEN_CACHE_DIR"] = folder
        try:
            return tiktoken.get_encoding(name)
        finally:
            os.environ.pop("TIKTOKEN_CACHE_DIR")
            if before is not None:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


def disputed_characters() -> set[str]:
    """Return the characters that `regex` and tiktoken put into different classes."""
    import tiktoken

    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF)
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    disputed: set[str] = set()
    for name in (r"\s", *(rf"\p{{{kind}}}" for kind in ("L", "N", "M", "Lu", "Lt", "Lm", "Lo"))):
        # tiktoken drops what a pattern leaves out, so what is left are the members of the class.
        peer = tiktoken.Encoding(
            "class", pat_str=name, mergeable_ranks=single_bytes, special_tokens={}
        )
        theirs = peer.decode_bytes(peer.encode_ordinary(every)).decode("utf-8")
        disputed |= set(theirs) ^ set(regex.findall(name, every))
    return disputed


class Pair:
    """An encoding of ours and tiktoken's."""

    def __init__(self, name: str) -> None:
        self.ours = RankTokenizer(load_ranks(name, download=False))
        self.theirs = tiktokens(name)

    def ids(self, text: str, special: str) -> tuple[list[int], list[int]]:
        """Return our ids and tiktoken's, special tokens "all" taken as such or "none"."""
        allowed: Any = "all" if special == "all" else set()
        theirs = self.theirs.encode(text, allowed_special=allowed, disallowed_special=())
        return self.ours.encode(text, special), theirs

    def round_trips(self, text: str, ids: list[int]) -> bool:
        """Tell whether the ids are those of the text's bytes, half characters replaced."""
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self.ours.decode_bytes(ids) == whole.encode("utf-8")


def compare(name: str, count: int, seed: int, disputed: set[str]) -> dict[str, Any]:
    """Encode `count` strings here and by tiktoken; return what came out."""
    pair, kinds = Pair(name), KINDS | real_kinds()
    names = ("strings", "characters", "tokens", "mismatches", "mismatches_by_unicode_version")
    told = {kind: dict.fromkeys(names, 0) for kind in kinds}
    digest, odd = hashlib.sha256(), []
    start = time.process_time()
    with command.progress_bar(name, count) as advance:
        for k, (kind, text) in enumerate(strings(kinds, count, f"{seed} {name}"), start=1):
            special = "all" if kind == "special tokens" else "none"
            ids, expected = pair.ids(text, special)
            figures = told[kind]
            figures["strings"] += 1
            figures["characters"] += len(text)
            figures["tokens"] += len(ids)
            if ids != expected or not pair.round_trips(text, ids):
                plain = "".join(c for c in text if c not in disputed)
                without, expected_without = pair.ids(plain, special)
                if without == expected_without and pair.round_trips(text, ids) and plain != text:
                    figures["mismatches_by_unicode_version"] += 1
                else:
                    figures["mismatches"] += 1
                    odd.append(
                        {"kind": kind, "string": ascii(text), "ids": ids, "tiktoken": expected}
                    )
            digest.update(np.array([len(ids), *ids], dtype="<u4").tobytes())
            if k % BATCH == 0 or k == count:
                advance(k, f"{len(odd)} mismatches")
    totals = {name: sum(figures[name] for figures in told.values()) for name in names}
    return {
        **totals,
        "sha256_of_ids": digest.hexdigest(),
        "cpu_seconds": round(time.process_time() - start, 1),
        "kinds": told,
        "first_mismatches": odd[:SHOWN],
    }


def parse() -> argparse.Namespace:
    """Return the command line's values."""
    parser = command.Parser("million_strings.py", "Compare ids with tiktoken's.")
    add = parser.add_argument
    add("--strings", type=int, default=1_000_000, help="in all (default: a million)")
    add("--encoding", action="append", choices=PUBLISHED, help="one of them; may be repeated")
    add("--seed", type=int, default=0, help="of the strings (default: 0)")
    add("--out", type=Path, help="write the results here, as JSON")
    return parser.parse_args()


def main() -> int:
    """Compare all encodings at hand, print a line for each, write the results."""
    args = parse()
    names = []
    for name in args.encoding or PUBLISHED:
        try:
            load_ranks(name, download=False)
            names.append(name)
        except UsageError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    disputed = disputed_characters()
    results: dict[str, Any] = {
        "strings": args.strings,
        "mismatches": 0,
        "seed": args.seed,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("tiktoken", "regex")},
        "characters_that_regex_and_tiktoken_class_differently": len(disputed),
        "encodings": {},
    }
    for k, name in enumerate(names):
        count = args.strings * (k + 1) // len(names) - args.strings * k // len(names)
        found = results["encodings"][name] = compare(name, count, args.seed, disputed)
        results["mismatches"] += found["mismatches"]
        print(
            f"{name}: {count:,} strings, {found['tokens']:,} tokens, {found['mismatches']} differ, "
            f"{found['mismatches_by_unicode_version']} more by the version of Unicode",
            flush=True,
        )
    if args.out:
        write_whole(args.out, (json.dumps(results, indent=2) + "\n").encode())
    return 1 if results["mismatches"] or not names else 0


if __name__ == "__main__":
    sys.exit(main())
