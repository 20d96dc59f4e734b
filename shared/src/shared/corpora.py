"""Corpora that need no download: the texts that every Python brings along.

    python-docs   the language reference's topics and the standard library's docstrings (English)
    python-code   the standard library's source
    words         the distinct words of python-docs, one a line

They are read off the source files with `ast`; nothing is imported, so nothing runs. The result is
the same each time on one Python, and differs between versions: its digest tells which it was.
"""

import ast
import hashlib
import inspect
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from shared import files
from shared.errors import DataError, ResourceError

NAMES = {
    "python-docs": "The Python reference's topics and the library's docstrings, in English",
    "python-code": "The source of Python's standard library",
    "words": "The distinct words of python-docs, one a line",
}
"""The corpora and what they hold."""

LICENCE = "PSF-2.0 (the running Python's own files)"

RECIPE = 1
"""Counts up when a corpus of the same Python would come out differently."""

MIN_CHARACTERS = 100_000
"""A library with less text than this is not one: its sources were left out or packed away."""

# Tests and examples; tables as code; programs with windows; what is not the library.
_LEFT_OUT = {
    *("test", "tests", "idlelib", "turtledemo", "lib2to3", "encodings", "pydoc_data"),
    *("site-packages", "dist-packages", "__pycache__", "lib-dynload", "ensurepip"),
}


def load(name: str, folder: Path) -> tuple[bytes, str, Path | None]:
    """Return a corpus as UTF-8 bytes, its sha256 and its file in `folder`.

    Built at the first call (a few seconds) and then kept in `folder`; where that can't be written
    the file is None. Raises `DataError` where this Python comes without its library's source.
    """
    path = _kept(name, folder)
    if path is not None:
        return path.read_bytes(), digest_in(path), path
    text = _words(folder) if name == "words" else build(name)
    data = text.encode("utf-8", "replace")  # a docstring may spell half of a surrogate pair
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{_stem(name)}-{sha256}.txt"
    try:
        files.make_folder(folder)
        files.write_file(path, data)
    except (OSError, ResourceError):
        return data, sha256, None
    return data, sha256, path


def build(name: str) -> str:
    """Gather `python-docs` or `python-code` from the running Python's library."""
    documents = _docs() if name == "python-docs" else _sources().values()
    text = "\n\n".join(document.strip("\n") for document in documents) + "\n"
    if len(text) < MIN_CHARACTERS:
        raise DataError(
            f"{name} can't be built: this Python has no library source at"
            f" {sysconfig.get_path('stdlib')}"
        )
    return text


def words_of(text: str) -> list[str]:
    """Return the distinct words of a text, sorted: `"The cat, a.b, the Rat2" -> ["cat", "the"]`.

    A word is two or more ASCII letters, the first perhaps a capital, beside which no dot, digit,
    underscore, apostrophe or hyphen joins more to it: names from code are mostly left out.
    """
    found = re.findall(r"(?<![\w.'-])[A-Za-z][a-z]+(?![\w'-]|\.\w)", text, re.ASCII)
    return sorted({word.lower() for word in found})


def _words(folder: Path) -> str:
    data, _, _ = load("python-docs", folder)
    return "\n".join(words_of(data.decode())) + "\n"


def _stem(name: str) -> str:
    """Return the beginning of a kept corpus's file name: another Python gets another one."""
    python = f"{RECIPE}\n{sys.version}\n{sysconfig.get_path('stdlib')}"
    return f"{name}-{hashlib.sha256(python.encode()).hexdigest()[:12]}"


def kept(name: str, folder: Path) -> list[Path]:
    """Return the files in `folder` that hold this Python's corpus, by their names."""
    return sorted(folder.glob(f"{_stem(name)}-{'[0-9a-f]' * 64}.txt"))


def digest_in(path: Path) -> str:
    """Return the digest that a kept corpus's file name ends in."""
    return path.stem.rpartition("-")[2]


def is_intact(path: Path) -> bool:
    """Tell whether a kept corpus has the digest that its name ends in."""
    return files.sha256_of(path) == digest_in(path)


def _kept(name: str, folder: Path) -> Path | None:
    """Return the corpus's intact file, if there is one; say so of one that is not."""
    for path in kept(name, folder):
        if is_intact(path):
            return path
        warnings.warn(f"{path} is damaged; building {name} again", stacklevel=3)
    return None


def _sources() -> dict[str, str]:
    """Return the standard library's modules as path -> source, in order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        # What begins so holds the build machine's paths, not code.
        if _LEFT_OUT.isdisjoint(parts) and not parts[0].startswith(("_sysconfigdata", "config-")):
            found["/".join(parts)] = path
    texts = {}
    for name in sorted(found):
        try:
            with tokenize.open(found[name]) as stream:
                texts[name] = stream.read()
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue  # unreadable or in an unknown encoding: no text to be had
    return texts


def _docs() -> Iterator[str]:
    """Yield the reference's topics, then each docstring once, in order of the modules' paths."""
    yield from _topics()
    seen = set()
    for source in _sources().values():
        for docstring in _docstrings(source):
            if docstring not in seen:
                seen.add(docstring)
                yield docstring


def _topics() -> Iterator[str]:
    """Yield what `help("TOPIC")` shows, by topic; nothing where it isn't installed."""
    path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    if path.exists():
        for node in _parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                topics: dict[str, str] = ast.literal_eval(node.value)
                yield from (topics[name] for name in sorted(topics))


def _docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and functions from top to bottom."""
    try:
        pending: list[ast.AST] = [_parse(source)]
    except (SyntaxError, ValueError):
        return
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield inspect.cleandoc(docstring)
        inner = (ast.stmt, ast.ExceptHandler)
        pending += reversed([n for n in ast.iter_child_nodes(node) if isinstance(n, inner)])


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old code has odd escapes in its strings
        return ast.parse(source)
