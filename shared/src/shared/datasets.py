"""Data sets by name, checked by digest: `resolve("shakespeare").text()`.

    python -m shared.datasets                  what there is, and whether it is here
    python -m shared.datasets fetch NAME       download one into the cache
    python -m shared.datasets verify           check everything that is here
    python -m shared.datasets path NAME        where its files are

A name is looked up in `$MLE_DATA` (a folder of files laid out as `registry.toml` says), in the
user's cache (`$MLE_CACHE`, or where the system keeps caches), at its public address, and among the
corpora that every Python brings along. What is not a name is a path to a text file or a folder of
them, plain or compressed, `.jsonl` files with the text under "text".
"""

import contextlib
import difflib
import functools
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn
from urllib.parse import urlsplit

import platformdirs
import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from shared import cli, corpora, files, registry, textfiles
from shared.download import download
from shared.errors import ArtefactError, DataError, ResourceError, UsageError
from shared.registry import Entry, Form, Source

SPLITS = ("train", "valid", "test")
"""The parts that make a data set's official split."""

SEPARATOR = "\n\n"
"""What stands between two documents of one text."""


@dataclass(frozen=True)
class Member:
    """One file of a data set."""

    part: str
    """`train`, `valid`, `queries`, ...; `all` for a single file; its path within a folder."""
    path: Path | None
    """Where it lies; None for a corpus that could not be kept on disk."""
    sha256: str
    """Digest of the uncompressed content."""
    data: bytes = field(default=b"", repr=False)
    """The content where there is no path."""

    @property
    def label(self) -> str:
        """What errors call it."""
        return str(self.path or "the embedded corpus")

    def open(self) -> BinaryIO:
        """Open the uncompressed content for reading as bytes."""
        return io.BytesIO(self.data) if self.path is None else textfiles.open_plain(self.path)

    def documents(self) -> Iterator[Iterator[str]]:
        """Yield each document as an iterator over its pieces; use one up before the next."""
        with self.open() as stream:
            if self.path is not None and textfiles.is_json_lines(self.path.name):
                for text in textfiles.read_documents(stream, self.label):
                    yield iter([text])
            else:
                yield textfiles.read_chunks(stream, self.label)


@dataclass(frozen=True)
class Dataset:
    """Files that are here and were checked, under the name that results report."""

    name: str
    licence: str
    members: tuple[Member, ...]
    is_text: bool = True
    """False for tables, vocabularies and the like, which have files but no `text()`."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Where the files lie, in the data set's order."""
        return tuple(member.path for member in self.members if member.path is not None)

    @functools.cached_property
    def sha256(self) -> str:
        """One digest of the whole content, however it is compressed (`combined_digest`)."""
        return registry.combined_digest((member.part, member.sha256) for member in self.members)

    @property
    def splits(self) -> dict[str, "Dataset"]:
        """The official `train`, `valid` and `test` parts, as far as the data set has them."""
        parts = {member.part for member in self.members}
        return {part: self.part(part) for part in SPLITS if part in parts}

    def part(self, part: str) -> "Dataset":
        """Return one part as a data set of its own; raise `UsageError` if there is none."""
        chosen = tuple(member for member in self.members if member.part == part)
        if not chosen:
            have = ", ".join(member.part for member in self.members)
            raise UsageError(f"{self.name} has no part {part!r}; it has {have}")
        return Dataset(f"{self.name} {part}", self.licence, chosen, self.is_text)

    def path(self, part: str = "all") -> Path:
        """Return the file of one part. Raises `UsageError` if there is none."""
        return self.part(part).files[0]

    def documents(self) -> Iterator[Iterator[str]]:
        """Yield each document as an iterator over its pieces, in bounded memory.

        A line of a `.jsonl` file is a document and one piece; any other file is one of pieces of
        at most 2 MiB. Use one document up before the next. Empty documents are passed over.

        Raises `DataError` naming file and offset where it is not UTF-8 text, and where there is no
        text at all; `UsageError` for a data set that is no text.
        """
        if not self.is_text:
            texts = ", ".join(name for name, source in registry.sources().items() if source.text)
            raise UsageError(f"{self.name} is no text to train on; these are: {texts}")
        begun = False
        for document in (d for member in self.members for d in member.documents()):
            first = next(filter(None, document), None)
            if first is not None:
                yield itertools.chain([first], document)
                begun = True
        if not begun:
            raise DataError(f"{self.name} holds no text")

    def texts(self) -> Iterator[str]:
        """Yield the documents, each as one string. Raises what `documents` raises."""
        for document in self.documents():
            yield "".join(document)

    def chunks(self) -> Iterator[str]:
        """Yield the text piece by piece, in bounded memory; joined they are `text()`.

        Raises what `documents` raises.
        """
        for number, document in enumerate(self.documents()):
            if number:
                yield SEPARATOR
            yield from document

    def text(self) -> str:
        """Return the whole text: the documents, with a blank line between two of them.

        Raises what `documents` raises.
        """
        return "".join(self.chunks())


def cache_folder() -> Path:
    """Return the folder for what can be had again: `$MLE_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("MLE_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("mle")


def resolve(name_or_path: str | Path, *, offline: bool = False) -> Dataset:
    """Find a data set by its name, or take a text file or a folder of them by its path.

    A name that the registry knows is never taken for a path: write `./names` for a folder. The
    first of `$MLE_DATA`, the cache and the public address that has a file decides.

    Args:
        name_or_path: a name that `python -m shared.datasets` lists, or a path.
        offline: never download.

    Raises `UsageError` for a name or path that does not exist, `ArtefactError` for a file with
    another digest than it should have, `DataError` for a file that is not UTF-8 text, is empty, or
    can't be had, `ResourceError` where the network or the disk fails.
    """
    if name_or_path in corpora.NAMES:
        return _embedded(str(name_or_path))
    source = registry.sources().get(str(name_or_path)) if isinstance(name_or_path, str) else None
    if source is None:
        return _from_path(name_or_path)
    members = []
    for entry in source.entries:
        path = find(entry) or _fetch(source, entry, offline)
        members.append(Member(entry.part, path, entry.content.sha256))
    return Dataset(source.name, source.licence, tuple(members), source.text)


def resolve_default(name: str, fallback: str = "python-docs") -> tuple[Dataset, str | None]:
    """Find a command's default data set, or take an embedded corpus in its place.

    Only for a name the user did not choose. Returns the data set, and the line to print where it
    is the fallback. A wrong file in `$MLE_DATA` or the cache stays an error.
    """
    source = registry.sources().get(name)
    for entry in source.entries if source else ():
        find(entry)
    try:
        return resolve(name), None
    except (ArtefactError, DataError, ResourceError) as error:
        return _embedded(fallback), f"{error}. Using the embedded corpus {fallback} instead."


def resolve_again(name_or_path: str, config: Mapping[str, Any]) -> Dataset:
    """Return the data of a training by its config.json, or those that `name_or_path` names.

    config has the training's `data`, empty for the default, and the name that this had then,
    `corpus.name`. Raises UsageError where they are not found, and whatever else `resolve` raises.
    """
    try:
        return resolve(name_or_path or config["data"] or config["corpus"]["name"])
    except UsageError as error:
        if name_or_path:
            raise
        raise UsageError(
            f"the data of the training are not where they were ({error}); name them with --data"
        ) from error


def find(entry: Entry) -> Path | None:
    """Return where a file lies in `$MLE_DATA` or the cache, after checking it; None if nowhere.

    Raises `ArtefactError` naming the file and both digests where it is another one.
    """
    for folder, advice in _folders():
        for form in entry.forms:
            path = folder / form.path
            if path.is_file():
                _check(path, form, advice)
                return path
    return None


def _folders() -> list[tuple[Path, str]]:
    """Return the folders to look in, with what to do about a wrong file there."""
    cache = (cache_folder() / "data", "get it again with `python -m shared.datasets fetch`")
    chosen = os.environ.get("MLE_DATA")
    if not chosen:
        return [cache]
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise UsageError(f"$MLE_DATA is {folder}, which is not a folder")
    return [(folder, "it lies in $MLE_DATA: put the right one there, or take it away"), cache]


def _check(path: Path, form: Form, advice: str) -> None:
    """Raise `ArtefactError` unless a file has the size and the digest that it should have."""
    found = files.sha256_of(path)
    if found != form.sha256:
        raise ArtefactError(
            f"{path} is another file than expected: sha256 {found} ({path.stat().st_size:,} bytes),"
            f" expected {form.sha256} ({form.size:,} bytes); {advice}"
        )


def _fetch(source: Source, entry: Entry, offline: bool = False) -> Path:
    """Download a file into the cache and return its path."""
    remedy = f"put it into $MLE_DATA as {entry.stored.path}"
    remedy += ", or name another text with --data PATH" if source.text else ""
    if entry.url is None:
        raise DataError(
            f"{source.name} is not here and can't be downloaded in this form. It comes from"
            f" {source.origin}: {remedy}"
        )
    if offline:
        raise DataError(
            f"{source.name} is not here: get it with `python -m shared.datasets fetch"
            f" {source.name}`, {remedy}"
        )
    path = cache_folder() / "data" / entry.served.path
    size, sha256 = entry.served.size, entry.served.sha256
    try:
        with _progress(f"{path.name} from {urlsplit(entry.url).netloc}", size) as progress:
            download(entry.url, path, size=size, sha256=sha256, progress=progress)
    except (ArtefactError, DataError, ResourceError) as error:
        raise type(error)(f"{source.name} can't be had: {error}; {remedy}") from error
    return path


@contextlib.contextmanager
def _progress(label: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, nothing elsewhere; yield what moves it."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=size)
        yield lambda done: bar.update(task, completed=done)


def _embedded(name: str) -> Dataset:
    """Return a corpus that every Python brings along."""
    data, sha256, path = corpora.load(name, _embedded_folder())
    member = Member("all", path, sha256, b"" if path else data)
    return Dataset(name, corpora.LICENCE, (member,))


def _from_path(name_or_path: str | Path) -> Dataset:
    """Return a text file, or the text files of a folder in order of their paths."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p, path))
        members = [_member(p.relative_to(path).as_posix(), p) for p in found]
    elif path.exists():
        found, members = [path], [_member("all", path)]
    else:
        raise UsageError(_unknown(name_or_path))
    if not any(size for _, size in members):
        what = "has no text files in it" if path.is_dir() and not found else "is empty"
        raise DataError(f"{path} {what}")
    return Dataset(str(path), "the user's own", tuple(member for member, _ in members))


def _member(part: str, path: Path) -> tuple[Member, int]:
    """Return a file as a member, and how many bytes it holds; refuse what is not UTF-8."""
    sha256, size = textfiles.inspect(path)
    return Member(textfiles.plain_name(part), path, sha256), size


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(name.startswith(".") for name in path.relative_to(folder).parts)


def _unknown(name_or_path: str | Path) -> str:
    """Say that there is nothing of a name, and which names are near."""
    names = [*registry.sources(), *corpora.NAMES]
    word = str(name_or_path)
    near = difflib.get_close_matches(word.lower(), names, n=3, cutoff=0.5)
    near += [name for name in names if name in word.lower() and name not in near]
    hint = f"did you mean {' or '.join(near)}?" if near else f"the data sets are {', '.join(names)}"
    return f"no data set and no file is called {word!r}; {hint}"


@dataclass(frozen=True)
class ListOptions:
    """What `list` and `verify` take."""

    json: bool = False
    """Print JSON for programs."""


@dataclass(frozen=True)
class NameOptions:
    """What `fetch` and `path` take."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """The data set, as `python -m shared.datasets` lists it."""
    json: bool = False
    """Print JSON for programs."""


def show_list(options: ListOptions) -> None:
    """List every data set with its size, licence and digest, and whether it is here."""
    rows = [_source_row(source) for source in registry.sources().values()]
    rows += [_corpus_row(name, about) for name, about in corpora.NAMES.items()]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    head = ("name", "size", "sha256", "where", "licence", "what")
    _print_table(
        head,
        [
            (
                str(row["name"]),
                _readable(row["bytes"]) if isinstance(row["bytes"], int) else "-",
                str(row["sha256"] or "-")[:12],
                str(row["where"]),
                str(row["licence"]),
                str(row["about"]),
            )
            for row in rows
        ],
    )


def fetch(options: NameOptions) -> None:
    """Download a data set into the cache, or build an embedded corpus there."""
    source = registry.sources().get(options.name)
    if source is None and options.name not in corpora.NAMES:
        raise UsageError(_unknown(options.name))
    for entry in source.entries if source else ():
        _discard_wrong(entry)
    _print_paths(resolve(options.name), options.json)


def show_path(options: NameOptions) -> None:
    """Print where a data set's files are, one a line; downloads nothing."""
    _print_paths(resolve(options.name, offline=True), options.json)


def verify(options: ListOptions) -> None:
    """Check every file that is here against its digest; exit code 4 if one is wrong."""
    results = _check_all()
    wrong = [error for error in results.values() if error]
    if options.json:
        print(json.dumps([{"path": str(p), "error": e} for p, e in results.items()], indent=2))
    else:
        for path, error in results.items():
            print(f"wrong  {error}" if error else f"ok     {path}")
    if wrong:
        raise ArtefactError(f"{len(wrong)} of {len(results)} files are not what they should be")


def _check_all() -> dict[Path, str]:
    """Return each file that is here with what is wrong with it, "" where nothing is."""
    results: dict[Path, str] = {}
    entries = [entry for source in registry.sources().values() for entry in source.entries]
    for folder, advice in _folders():
        for form in (form for entry in entries for form in entry.forms):
            if (folder / form.path).is_file():
                try:
                    _check(folder / form.path, form, advice)
                    results[folder / form.path] = ""
                except ArtefactError as error:
                    results[folder / form.path] = str(error)
    for path in (p for name in corpora.NAMES for p in corpora.kept(name, _embedded_folder())):
        intact = corpora.is_intact(path)
        results[path] = "" if intact else f"{path} is damaged; it is built again when it is needed"
    return results


def _discard_wrong(entry: Entry) -> None:
    """Remove a wrong file from the cache, and say so; one in `$MLE_DATA` is not ours to remove."""
    cache, advice = _folders()[-1]
    for form in entry.forms:
        path = cache / form.path
        if path.is_file():
            try:
                _check(path, form, advice)
            except ArtefactError as error:
                print(f"replacing a wrong file: {error}", file=sys.stderr)
                files.remove_file(path)


def _source_row(source: Source) -> dict[str, object]:
    """Return what `list` shows of a named data set."""
    places = [_place(entry) for entry in source.entries]
    here = [place for place in places if place]
    if len(here) == len(places):
        where = ", ".join(sorted(set(here)))
    elif here:
        where = f"{len(here)} of {len(places)} files"
    else:
        where = "to fetch" if all(entry.url for entry in source.entries) else "not here"
    return {
        "name": source.name,
        "bytes": source.size,
        "sha256": source.sha256,
        "where": where,
        "licence": source.licence,
        "about": source.about,
    }


def _place(entry: Entry) -> str:
    """Return where a file of the right size lies, "" if nowhere; `verify` looks at its content."""
    for folder, _ in _folders():
        for form in entry.forms:
            path = folder / form.path
            if path.is_file() and path.stat().st_size == form.size:
                return "cache" if folder == cache_folder() / "data" else "$MLE_DATA"
    return ""


def _corpus_row(name: str, about: str) -> dict[str, object]:
    """Return what `list` shows of an embedded corpus; size and digest once it has been built."""
    path = next(iter(corpora.kept(name, _embedded_folder())), None)
    return {
        "name": name,
        "bytes": path.stat().st_size if path else None,
        "sha256": corpora.digest_in(path) if path else None,
        "where": "embedded",
        "licence": corpora.LICENCE,
        "about": about,
    }


def _embedded_folder() -> Path:
    return cache_folder() / "embedded"


def _print_paths(dataset: Dataset, as_json: bool) -> None:
    """Print where the files of a data set are."""
    if as_json:
        parts = {member.part: str(member.path) for member in dataset.members}
        row = {"name": dataset.name, "sha256": dataset.sha256, "files": parts}
        print(json.dumps(row, indent=2))
        return
    for path in dataset.files:
        print(path)


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table: drawn to fit on a terminal, whole lines of aligned columns elsewhere."""
    console = Console()
    if console.is_terminal:
        table = Table(*head, box=None, pad_edge=False, header_style="bold")
        table.columns[0].no_wrap = True
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _readable(size: int) -> str:
    """Put a number of bytes in words: `1115394 -> "1.1 MB"`."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


VERBS: Mapping[str, cli.Verb] = {
    "list": show_list,
    "fetch": fetch,
    "verify": verify,
    "path": show_path,
}
"""The command's verbs; without one it lists."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; see the top of this file."""
    words = list(sys.argv[1:] if args is None else args)
    if all(word.startswith("-") for word in words) and not {"-h", "--help"} & set(words):
        words.insert(0, "list")
    cli.run(VERBS, words, "python -m shared.datasets")


if __name__ == "__main__":
    main()
