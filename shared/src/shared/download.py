"""A file from a public address: resumed where it was cut, and checked before it gets its name.

    bytes arrive -> NAME.part -> size and sha256 hold -> fsync -> renamed to NAME

Whatever happens on the way, NAME is the right file or not there. A cut connection leaves
NAME.part, and the next try asks the server for the missing bytes only (RFC 9110, sec. 14).
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import requests
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema

from shared import files
from shared.errors import ArtefactError, DataError, Failure, ResourceError

TRIES = 4
"""How often to connect before giving up."""

BACKOFF_S = 0.4
"""Seconds to wait after the first failed try; they double with each."""

TIMEOUT_S = (5.0, 30.0)
"""Seconds to wait for a connection, and for the next bytes on it."""

_CHUNK = 1 << 16  # bytes between two reports of progress
_TRY_AGAIN = {408, 429, 500, 502, 503, 504}  # the server's trouble, which may pass


class _Cut(Exception):
    """The connection ended too early, or was never there; trying again may help."""


class _Changed(Exception):
    """What is in the partial file is not the beginning of what the server has."""


@dataclass
class _Transfer:
    """One file on its way."""

    url: str
    part: Path
    size: int
    progress: Callable[[int], None] | None
    etag: str = field(default="")

    def have(self) -> int:
        """Return how many bytes have arrived so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def told(self, done: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(done)


def download(
    url: str,
    path: Path,
    *,
    size: int,
    sha256: str,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fetch `url` into `path`, unless the right file is there already.

    Args:
        url: an http or https address; redirects are followed.
        path: where the file goes; its folder is made.
        size: the file's length in bytes; no more than that is ever taken.
        sha256: the file's digest in hex.
        progress: told the number of bytes that are here, again and again.

    Raises `ArtefactError` where the server has another file (the partial file is then removed),
    `DataError` where it has none, `ResourceError` where it can't be reached or the disk refuses.
    """
    files.make_folder(path.parent)
    transfer = _Transfer(url, path.with_name(path.name + ".part"), size, progress)
    with _alone(path):
        if path.exists() and files.sha256_of(path) == sha256:
            return
        resumed = 0 < transfer.have() <= size
        _fetch(transfer)
        found = files.sha256_of(transfer.part)
        if found != sha256 and resumed:  # the older half may be of another version: once more
            files.remove_file(transfer.part)
            _fetch(transfer)
            found = files.sha256_of(transfer.part)
        if found != sha256:
            files.remove_file(transfer.part)
            raise ArtefactError(
                f"{url} serves another file than expected: sha256 {found}, expected {sha256}"
            )
        files.replace(transfer.part, path)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the file's lock, so that two processes never write one partial file."""
    lock = filelock.FileLock(path.with_name(path.name + ".lock"))
    with files.disk_errors(Path(lock.lock_file)):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch(transfer: _Transfer) -> None:
    """Bring the partial file to its full size, trying again where that may help."""
    if transfer.have() > transfer.size:
        files.remove_file(transfer.part)
    reason = ""
    for number in range(TRIES):
        if transfer.have() == transfer.size:
            return
        if number:
            time.sleep(BACKOFF_S * 2 ** (number - 1))
        try:
            _receive(transfer)
            return
        except _Changed:
            files.remove_file(transfer.part)
            transfer.etag = ""
            reason = "the file changed while it was read"
        except _Cut as error:
            reason = str(error)
    raise _unreachable(transfer, f"{reason}; {TRIES} tries")


def _receive(transfer: _Transfer) -> None:
    """Ask once for the bytes that are missing and append them to the partial file."""
    start = transfer.have()
    # A compressed transfer could not be resumed by position.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if transfer.etag:
            headers["If-Range"] = transfer.etag
    try:
        with requests.get(
            transfer.url, headers=headers, stream=True, timeout=TIMEOUT_S
        ) as response:
            start = _start_of(response, start, transfer)
            _append(response, start, transfer)
    except (MissingSchema, InvalidSchema, InvalidURL) as error:
        raise DataError(f"{transfer.url} is no address to download from: {error}") from error
    except requests.ConnectTimeout as error:  # every address was tried in vain: that took long
        raise _unreachable(transfer, "no answer") from error
    except requests.RequestException as error:
        raise _Cut(_reason(error)) from error


def _start_of(response: requests.Response, start: int, transfer: _Transfer) -> int:
    """Return the position at which the response's bytes belong, or raise what its status means."""
    status = response.status_code
    if status in _TRY_AGAIN:
        raise _Cut(f"the server answers {status} {response.reason}")
    if status == 416:  # Range Not Satisfiable
        raise _Changed
    if status not in (200, 206):
        raise DataError(
            f"{transfer.url} can't be had: the server answers {status} {response.reason}"
        )
    etag = response.headers.get("ETag", "")
    transfer.etag = "" if etag.startswith("W/") else etag  # If-Range takes no weak one
    if status == 200:  # the whole file: no ranges here, or it is not the file that it was
        start, total = 0, response.headers.get("Content-Length", "")
    else:
        pattern = rf"bytes {start}-\d+/(\d+|\*)"
        match = re.fullmatch(pattern, response.headers.get("Content-Range", ""))
        if match is None:
            raise _Changed
        total = match[1]
    if total.isdecimal() and int(total) != transfer.size:
        raise _wrong_size(transfer, f"{int(total):,}")
    return start


def _append(response: requests.Response, start: int, transfer: _Transfer) -> None:
    """Write the response's bytes from a position of the partial file on, and sync them."""
    done = start
    with files.disk_errors(transfer.part), transfer.part.open("ab" if start else "wb") as file:
        try:
            for chunk in response.iter_content(_CHUNK):
                done += len(chunk)
                if done > transfer.size:
                    raise _wrong_size(transfer, "more")
                file.write(chunk)
                transfer.told(done)
        finally:
            file.flush()
            os.fsync(file.fileno())
    if done < transfer.size:
        raise _Cut(f"the connection ended after {done:,} bytes")


def _unreachable(transfer: _Transfer, reason: str) -> Failure:
    """Return the error for a server that does not give the file now, but might later."""
    return ResourceError(
        f"{transfer.url} can't be fetched now ({reason}); {transfer.have():,} of"
        f" {transfer.size:,} bytes are here, and the next try goes on from there"
    )


def _wrong_size(transfer: _Transfer, found: str) -> Failure:
    """Return the error for a file of another size, after removing what has arrived of it."""
    files.remove_file(transfer.part)
    return ArtefactError(
        f"{transfer.url} serves another file than expected: {found} bytes, expected"
        f" {transfer.size:,}"
    )


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a failed request, which is the one a person understands."""
    while True:
        inner = error.__cause__ or error.__context__ or getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            return str(error) or type(error).__name__
        error = inner
