r"""Count the pre-tokens of a corpus of any size, in bounded memory, in several processes.

    count_words([Path("novels"), Path("web.jsonl.xz"), "one more text"], GPT4_SPLIT_PATTERN, 4)

Files are read a block at a time and cut where no pre-token can reach across, so that the counts,
and the order of first appearance, are those of the whole, for any number of processes. Memory
grows with the number of *different* pre-tokens alone: 100,000 of them in 25 MB of English, each
about 100 bytes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

from minbpe.counting import BatchCounter, WordCounter
from minbpe.documents import Cut, list_files, read_pieces
from minbpe.errors import DataError
from minbpe.pretokens import TIME_LIMIT, Splitter, replace_surrogates
from minbpe.probe import check_pattern
from minbpe.workers import Workers

__all__ = ["BatchCounter", "check_pattern", "count_batches", "count_words", "list_files"]

Progress = Callable[[int], None]
"""Called with the number of bytes read until now, as they lie on disk."""

BATCH = 1 << 20
"""Characters that a worker is given at a time, about."""


def count_words(
    sources: str | Path | Iterable[str | Path],
    pattern: str | None,
    workers: int = 0,
    time_limit: float = TIME_LIMIT,
    progress: Progress | None = None,
) -> Counter[str]:
    """Return how often each pre-token of `sources` occurs, in the order of first appearance.

    A `str` is a text; a `Path` is a file, a folder (see `list_files`) or `STDIN`: text, or `.jsonl`
    with a text in the field "text" of each line; `.xz`, `.bz2` and `.gz` are unpacked. No pre-token
    spans two texts. `pattern` None (or "") splits nothing. `workers` processes split; 0 is this one
    alone. A pattern that is not one of `PATTERNS` may not be cut: a text is split whole.

    Raises UsageError for a file that cannot be read, DataError for what is not text, for a text
    too long to be split whole, and for a pattern that takes more than `time_limit` CPU seconds for
    a mebibyte; ResourceError when a worker was killed.
    """
    with Workers(BatchCounter(pattern, time_limit), workers) as pool:
        return count_batches(pool, sources, pattern, progress)


def count_batches(
    pool: "Workers[list[str], dict[str, int]]",
    sources: str | Path | Iterable[str | Path],
    pattern: str | None,
    progress: Progress | None = None,
) -> Counter[str]:
    """Do what `count_words` does in a pool of `BatchCounter`s, which a progress bar must follow."""
    listed = [sources] if isinstance(sources, str | Path) else sources
    batches = _batches(listed, _cutter(pattern), progress)
    if pool.number == 0:
        counter = WordCounter(pattern, cast(BatchCounter, pool.function).time_limit)
        for batch in batches:
            counter.add(batch)
        return counter.result()
    words: Counter[str] = Counter()
    for counts in pool.map(batches):
        for word, n in counts.items():  # Counter.update would cost a call each
            words[word] = words.get(word, 0) + n
    return words


# ---- Reading


def _cutter(pattern: str | None) -> Cut:
    """Return where texts may be cut for `pattern`."""
    return Splitter(pattern).find_cut if pattern else lambda _text, _start: None


def _batches(
    sources: Iterable[str | Path], cut: Cut, progress: Progress | None
) -> Iterator[list[str]]:
    """Yield the texts of the sources, short ones together and long ones in parts."""
    batch: list[str] = []
    size = 0
    for text in _texts(sources, cut, progress):
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _texts(sources: Iterable[str | Path], cut: Cut, progress: Progress | None) -> Iterator[str]:
    """Yield the texts of the sources, files a part at a time, and report the bytes read."""
    done = 0
    for source in sources:
        if isinstance(source, str):
            yield replace_surrogates(source)
            done += len(source)
            continue
        files = list_files(source)
        for path in files:
            if path.is_file() and not path.stat().st_size:
                raise DataError(f"{path} is empty")
        for piece in read_pieces(files, cut, size=BATCH):
            done += piece.read
            if progress is not None:
                progress(done)
            if piece.text:
                yield replace_surrogates(piece.text)
