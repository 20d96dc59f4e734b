"""The published tokenizers, gpt2 to o200k_base, from the files that OpenAI offers.

A name's files are looked for in `$MLE_DATA/tokenizers`, in the user's cache folder, in tiktoken's
cache, and then downloaded to the user's cache folder. Wherever a file comes from, its SHA-256
decides. A path instead of a name is a file of a kind that `minbpe.rank_files` or
`minbpe.huggingface` reads.
"""

import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from minbpe import huggingface, rank_files
from minbpe.errors import ResourceError, TokenizerFileError, UsageError
from minbpe.model_file import write_whole
from minbpe.pretokens import (
    GPT2_SPLIT_PATTERN,
    GPT4_SPLIT_PATTERN,
    O200K_SPLIT_PATTERN,
    Splitter,
)

TIMEOUT_S = 30.0
"""Seconds to wait for a connection, and for the next bytes on it."""

PAIRS = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}
"""GPT-2's two files under OpenAI's names and Hugging Face's; either may be named."""


@dataclass(frozen=True)
class Ranks:
    """A tokenizer by ranks: a token's rank is its id, and lower ranks merge first.

    `special_tokens` maps a text to its id; `pattern` splits text into pre-tokens, "" not at all.
    """

    name: str
    pattern: str
    ranks: dict[bytes, int]
    special_tokens: dict[str, int]


@dataclass(frozen=True)
class RankFile:
    """A published file: its name on disk, its address, and what it must be."""

    name: str
    url: str
    sha256: str


@dataclass(frozen=True)
class Published:
    """A published tokenizer. Of special tokens and digests the source is tiktoken 0.14."""

    files: tuple[RankFile, ...]
    pattern: str
    special_tokens: dict[str, int]


WHOLE_TEXT = r"[\s\S]+"
"""tiktoken's way to say that nothing splits a text."""

Content = tuple[Path, bytes]
"""A file's path and what it holds."""

_HOST = "https://openaipublic.blob.core.windows.net"


def _tiktoken_file(name: str, sha256: str) -> RankFile:
    return RankFile(f"{name}.tiktoken", f"{_HOST}/encodings/{name}.tiktoken", sha256)


def _gpt2_file(name: str, sha256: str) -> RankFile:
    return RankFile(name, f"{_HOST}/gpt-2/encodings/main/{name}", sha256)


PUBLISHED = {
    "gpt2": Published(
        (
            _gpt2_file(
                "encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
            ),
            _gpt2_file(
                "vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
            ),
        ),
        GPT2_SPLIT_PATTERN,
        {"<|endoftext|>": 50256},
    ),
    "p50k_base": Published(
        (
            _tiktoken_file(
                "p50k_base", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"
            ),
        ),
        GPT2_SPLIT_PATTERN,
        {"<|endoftext|>": 50256},
    ),
    "cl100k_base": Published(
        (
            _tiktoken_file(
                "cl100k_base", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
            ),
        ),
        GPT4_SPLIT_PATTERN,
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Published(
        (
            _tiktoken_file(
                "o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
            ),
        ),
        O200K_SPLIT_PATTERN,
        {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    ),
}
"""The tokenizers that have names."""


def load_ranks(source: str | Path, *, download: bool = True) -> Ranks:
    """Return the tokenizer of a name in `PUBLISHED`, or of a file.

    A name is never taken for a path: write `./gpt2` for a file of that name. Raises UsageError
    for a name or file that does not exist or can't be had, TokenizerFileError for a file that is
    torn, altered or says what this package can't do, ResourceError when the disk refuses.
    """
    if isinstance(source, str) and source in PUBLISHED:
        return _load_named(source, download)
    path = Path(source)
    if not path.is_file():
        raise UsageError(f"{source} is neither a file nor one of {', '.join(PUBLISHED)}")
    data = rank_files.read_capped(path)
    if data.startswith(b"#version"):
        return _load_pair(None, (path, data))
    if data.lstrip()[:1] == b"{":
        content = rank_files.parse_json(path, data)
        if type(content.get("model", 0)) is int:  # a vocabulary, where "model" may be a token
            return _load_pair((path, data), None)
        return Ranks(path.stem, *huggingface.parse_tokenizer_json(path, content))
    return _load_tiktoken(path, data)


# ---- files by path


def companion(path: Path) -> Path:
    """Return where a `.tiktoken` file's pattern and special tokens are: `NAME.tiktoken.json`."""
    return path.with_name(f"{path.name}.json")


def _load_tiktoken(path: Path, data: bytes) -> Ranks:
    """Read ranks; pattern and special tokens are a published tokenizer's, or of the companion."""
    sha256 = hashlib.sha256(data).hexdigest()
    beside = companion(path)
    if beside.is_file():
        pattern, special = _read_companion(beside, path, sha256)
        ranks = rank_files.parse_tiktoken(path, data)
        rank_files.check_ranks(path, ranks, special)
        return Ranks(path.stem, pattern, ranks, special)
    for name, entry in PUBLISHED.items():
        if sha256 == entry.files[0].sha256:
            ranks = rank_files.parse_tiktoken(path, data)
            return Ranks(name, entry.pattern, ranks, dict(entry.special_tokens))
        if path.name == entry.files[0].name:
            raise _another(path, sha256, entry.files[0])
    rank_files.check_ranks(path, rank_files.parse_tiktoken(path, data), {})
    raise UsageError(
        f"{path} has ranks only: put the split pattern and the special tokens beside it, "
        f'{{"pattern": ..., "special_tokens": {{...}}, "sha256": "{sha256}"}} in {beside.name}'
    )


def _read_companion(beside: Path, path: Path, sha256: str) -> tuple[str, dict[str, int]]:
    content = rank_files.parse_json(beside, rank_files.read_capped(beside))
    if not isinstance(content, dict) or not content.keys() >= {"pattern", "special_tokens"}:
        raise TokenizerFileError(f"{beside}: it must have 'pattern' and 'special_tokens'")
    if content.get("sha256") != sha256:
        raise TokenizerFileError(f"{beside}: its sha256 is not that of {path.name}, {sha256}")
    pattern, special = content["pattern"], content["special_tokens"]
    if not isinstance(pattern, str | None) or not isinstance(special, dict):
        raise TokenizerFileError(f"{beside}: 'pattern' is a text or null, 'special_tokens' ids")
    if pattern in (None, WHOLE_TEXT):
        return "", special
    try:
        Splitter(pattern)
    except UsageError as error:
        raise TokenizerFileError(f"{beside}: {error}") from None
    return pattern, special


def _load_pair(encoder: Content | None, merges: Content | None) -> Ranks:
    """Read GPT-2's two files, of which one is at hand and the other lies beside it."""
    if encoder is None:
        assert merges is not None
        encoder = _beside(merges[0], {theirs: ours for ours, theirs in PAIRS.items()})
    if merges is None:
        merges = _beside(encoder[0], PAIRS)
    ranks, special = rank_files.parse_gpt2(encoder, merges)
    rank_files.check_ranks(encoder[0], ranks, special)
    return Ranks(encoder[0].resolve().parent.name, GPT2_SPLIT_PATTERN, ranks, special)


def _beside(path: Path, other: dict[str, str]) -> Content:
    if path.name not in other:
        raise UsageError(
            f"{path}: which file goes with it? It must be called {' or '.join(other)}, "
            f"and beside it {' or '.join(other.values())}"
        )
    partner = path.with_name(other[path.name])
    return partner, rank_files.read_capped(partner)


# ---- names


def _load_named(name: str, download: bool) -> Ranks:
    entry = PUBLISHED[name]
    if name == "gpt2":
        encoder, merges = (_content(file, download) for file in entry.files)
        ranks, _ = rank_files.parse_gpt2(encoder, merges)
    elif name == "p50k_base" and not _find(entry.files[0]) and (found := _p50k_from_gpt2()):
        ranks = found
    else:
        ranks = rank_files.parse_tiktoken(*_content(entry.files[0], download))
    return Ranks(name, entry.pattern, ranks, dict(entry.special_tokens))


def _p50k_from_gpt2() -> dict[bytes, int] | None:
    """Return p50k_base as GPT-2's tokens and runs of 2 to 25 spaces; None without GPT-2's files."""
    if not all(map(_find, PUBLISHED["gpt2"].files)):
        return None
    ranks = load_ranks("gpt2", download=False).ranks
    ranks |= {b" " * (k - 50255): k for k in range(50257, 50281)}
    rendered = rank_files.render_tiktoken(ranks)
    assert hashlib.sha256(rendered).hexdigest() == PUBLISHED["p50k_base"].files[0].sha256
    return ranks


def _content(file: RankFile, download: bool) -> Content:
    """Return a published file, from wherever it can be had, with the digest it must have."""
    path = _find(file)
    if path is None:
        if not download:
            raise UsageError(f"{file.name} is not on this machine; {_remedy(file)}")
        return _download(file)
    data = rank_files.read_capped(path)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != file.sha256:
        raise _another(path, sha256, file)
    return path, data


def fill_tiktoken_cache(name: str, folder: Path, *, download: bool = True) -> None:
    """Put a published tokenizer's files into a folder as tiktoken caches them.

    With `TIKTOKEN_CACHE_DIR` set to it, `tiktoken.get_encoding(name)` needs no network. Raises as
    `load_ranks` does.
    """
    for file in PUBLISHED[name].files:
        if name == "gpt2":
            data = _content(file, download)[1]
        else:
            data = rank_files.render_tiktoken(load_ranks(name, download=download).ranks)
        write_whole(folder / _name_in_tiktokens_cache(file), data)


def _name_in_tiktokens_cache(file: RankFile) -> str:
    return hashlib.sha1(file.url.encode()).hexdigest()


def _another(path: Path, sha256: str, file: RankFile) -> TokenizerFileError:
    return TokenizerFileError(
        f"{path} is not the {file.name} that was published: sha256 {sha256}, expected "
        f"{file.sha256}; remove it, or put the right one there"
    )


def _find(file: RankFile) -> Path | None:
    return next((path for path in places(file) if path.is_file()), None)


def cache_folder() -> Path:
    """Return the folder for what can be had again: `$MLE_CACHE`, or `mle` in the user's cache."""
    if chosen := os.environ.get("MLE_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/mle"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mle"


def places(file: RankFile) -> list[Path]:
    """Return where a file may lie, in the order of looking."""
    folders = []
    if chosen := os.environ.get("MLE_DATA"):
        folders.append(Path(chosen).expanduser() / "tokenizers")
    folders += [cache_folder() / "tokenizers", cache_folder() / "data" / "tokenizers"]
    found = [folder / file.name for folder in folders]
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            tiktokens = Path(os.environ[variable])
            break
    else:
        tiktokens = Path(tempfile.gettempdir()) / "data-gym-cache"
    return [*found, tiktokens / _name_in_tiktokens_cache(file)]


# ---- the network


def _download(file: RankFile) -> Content:
    """Fetch a published file into the cache folder, where it appears whole and verified."""
    from http.client import HTTPException  # here, as in _receive

    try:
        data = _receive(file)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(f"{file.url} can't be reached ({reason}); {_remedy(file)}") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != file.sha256:
        raise TokenizerFileError(
            f"{file.url} serves another file than was published: sha256 {sha256}, expected "
            f"{file.sha256}"
        )
    path = cache_folder() / "tokenizers" / file.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{path.parent} cannot be made: {error.strerror}") from None
    write_whole(path, data)
    return path, data


def _receive(file: RankFile) -> bytes:
    """Return what the address serves, showing progress; no more than the cap is taken."""
    import urllib.request  # here, so that only a download loads 8 MiB of modules

    from minbpe.command import progress_bar

    data = bytearray()
    with urllib.request.urlopen(file.url, timeout=TIMEOUT_S) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        with progress_bar(file.name, total, in_bytes=True) as advance:
            while len(data) <= rank_files.MAX_RANK_FILE_BYTES:
                chunk = response.read(1 << 16)
                if not chunk:
                    break
                data += chunk
                advance(len(data))
    return bytes(data)


def _remedy(file: RankFile) -> str:
    """Say where the file can be had and where it belongs."""
    return f"get {file.url} and put it there as {cache_folder() / 'tokenizers' / file.name}"
