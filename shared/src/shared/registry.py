"""What is known of each named data set: its files, their digests, licence and origin.

The facts stand in `registry.toml`, beside this file.
"""

import functools
import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import textfiles


@dataclass(frozen=True)
class Form:
    """One way in which a file can lie on disk: as listed, or unpacked."""

    path: str
    """Its place below a data folder, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One file of a named data set."""

    part: str
    """What it is of the data set: `train`, `valid`, `test`, `queries`, ... or `all`."""
    stored: Form
    """As listed, perhaps compressed."""
    content: Form
    """Unpacked; the same as `stored` for a file that is not compressed."""
    url: str | None
    """What serves the file or its content, byte for byte; None where nothing public does."""

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms in which the file is accepted, the listed one first."""
        return (self.stored,) if self.stored == self.content else (self.stored, self.content)

    @property
    def served(self) -> Form:
        """The form that `url` serves, which the address's own ending tells."""
        compressed = textfiles.plain_name(self.url or "") != (self.url or "")
        return self.stored if compressed else self.content


@dataclass(frozen=True)
class Source:
    """A named data set."""

    name: str
    about: str
    """What it holds, in a line."""
    licence: str
    origin: str
    """Where it comes from, for a person to look up."""
    text: bool
    """Whether it reads as one text, or is tables, vocabularies and the like."""
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of all files as listed."""
        return sum(entry.stored.size for entry in self.entries)

    @property
    def sha256(self) -> str:
        """The digest of the whole content (see `combined_digest`)."""
        return combined_digest((entry.part, entry.content.sha256) for entry in self.entries)


def combined_digest(parts: Iterable[tuple[str, str]]) -> str:
    r"""Return one sha256 for several files given as (name, sha256 of the uncompressed content).

    A single file keeps its own digest; of several it is the digest of their sorted lines
    `"name digest\n"`. It does not depend on how the files are compressed or ordered.
    """
    pairs = sorted(parts)
    if len(pairs) == 1:
        return pairs[0][1]
    return hashlib.sha256(
        "".join(f"{name} {digest}\n" for name, digest in pairs).encode()
    ).hexdigest()


@functools.cache
def sources() -> Mapping[str, Source]:
    """Return every named data set by its name."""
    text = Path(__file__).with_name("registry.toml").read_text("utf-8")
    return {name: _source(name, table) for name, table in tomllib.loads(text).items()}


def _source(name: str, table: Mapping[str, Any]) -> Source:
    entries = tuple(_entry(row) for row in table["files"])
    facts = {key: table[key] for key in ("about", "licence", "origin", "text")}
    return Source(name=name, entries=entries, **facts)


def _entry(row: Mapping[str, Any]) -> Entry:
    stored = Form(row["path"], row["bytes"], row["sha256"])
    content = Form(
        textfiles.plain_name(stored.path),
        row.get("content_bytes", stored.size),
        row.get("content_sha256", stored.sha256),
    )
    return Entry(row["part"], stored, content, row.get("url"))
