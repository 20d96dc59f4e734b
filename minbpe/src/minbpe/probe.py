"""Find a catastrophic split pattern before it meets the corpus.

A pattern such as `(a+)+$` tries every way of sharing a run of letters between its two repeats: 2^n
ways for n letters, for ever on a word of forty. A user's own pattern is therefore tried on small
texts in a process of its own, which can be killed; and while a corpus is split, each search has a
time limit (see `Splitter`), as no list of texts finds every such pattern.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache

import regex

from minbpe.errors import DataError
from minbpe.pretokens import PATTERNS, TIME_LIMIT, Splitter, too_slow

READY = b"ready\n"
"""What the process says first: from then on, its end is the pattern's doing."""

STARTUP_S = 30.0
"""Seconds allowed for starting the process that tries a pattern."""

RUN = 2000
"""Characters in a text to try, at least."""

MEMORY = 2 << 30
"""Bytes of address space that trying a pattern may take."""


@cache
def check_pattern(pattern: str, time_limit: float = TIME_LIMIT) -> None:
    """Raise DataError when `pattern` takes longer than `time_limit` seconds on some small text.

    Raises UsageError for a pattern that does not compile. The named patterns need no check, and
    one that passed needs no second. Where no process can be had, nothing is tried, and the time
    limit while splitting must do.
    """
    Splitter(pattern)
    if pattern in PATTERNS.values() or not sys.executable or hasattr(sys, "frozen"):
        return  # "frozen" is a program that has Python inside: starting it would be no probe
    try:
        done = subprocess.run(
            [sys.executable, "-m", "minbpe.probe"],
            input=json.dumps([pattern, time_limit]).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=time_limit + STARTUP_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise too_slow(pattern, time_limit, "a small text") from None
    except OSError:
        return
    if not done.stdout.startswith(READY):
        return
    if done.returncode:
        raise DataError(f"the split pattern {pattern!r} crashes the regex library or its memory")
    if slow := json.loads(done.stdout.removeprefix(READY)):
        raise too_slow(pattern, time_limit, slow)


def probe_texts(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield texts that make patterns backtrack, each with its description.

    Runs of one character and of short words, taken from the pattern and from a few that most
    patterns know, each with an end that fits nothing before it.
    """
    words = [*"a0 \n!é_.A", *dict.fromkeys(pattern), *regex.findall(r"\w{2,}", pattern)]
    words += ["ab", "a ", "a0", " \n", "aA", "a.", "The cat, it's 12.5!\n"]
    for word in dict.fromkeys(words):
        for end in ("", "\0"):
            times = -(-RUN // len(word))
            text = f"{times} times {word!r}" + (" and a NUL" if end else "")
            yield word * times + end, text


def find_slow(pattern: str, time_limit: float) -> str:
    """Return the description of the first text on which `pattern` is too slow, "" for none."""
    compiled = regex.compile(pattern)
    end = time.process_time() + time_limit
    for text, description in probe_texts(pattern):
        left = max(end - time.process_time(), 0.001)
        try:
            for _ in compiled.finditer(text, timeout=left):
                pass
        except TimeoutError:
            return description
    return ""


def main() -> None:
    """Read [pattern, time limit] from stdin; print `READY`, then what `find_slow` says, in JSON."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print(READY.decode(), end="", flush=True)
    print(json.dumps(find_slow(*json.load(sys.stdin))))


if __name__ == "__main__":
    main()
