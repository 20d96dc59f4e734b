"""Downloads against a server on the loopback interface that can misbehave."""

import errno
import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shared import download as module
from shared import faults
from shared.download import download
from shared.errors import ArtefactError, DataError, ResourceError

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CHUNK = 1 << 16  # what a cut loses at most; tests cut at multiples of it


@dataclass
class Site:
    """What the server has, how it misbehaves, and what it saw."""

    content: bytes = CONTENT
    url: str = ""
    status: list[int] = field(default_factory=list)  # answers of the next requests; then 200
    cut: list[int] = field(default_factory=list)  # bytes sent before the line is cut, per request
    ranges: bool = True
    etag: str = ""
    says_length: bool = True
    ranges_seen: list[str | None] = field(default_factory=list)
    if_ranges_seen: list[str | None] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)  # body bytes of each answer
    stalled: threading.Event = field(default_factory=threading.Event)
    stall: bool = False  # send half, then wait for the client to go away


def make_handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/file")
                self.end_headers()
                return
            site.ranges_seen.append(self.headers.get("Range"))
            site.if_ranges_seen.append(self.headers.get("If-Range"))
            status = site.status.pop(0) if site.status else 200
            if status != 200:
                self.send_error(status)
                return
            start = self.start()
            if start is None:
                self.send_error(416)
            else:
                self.send_body(site.content[start:], start)

        def start(self) -> int | None:
            """Return where the answer begins, None if there is nothing from there on."""
            wanted = self.headers.get("Range")
            changed = self.headers.get("If-Range") not in (None, site.etag)
            if wanted is None or not site.ranges or changed:
                return 0
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            return first if first < len(site.content) else None

        def send_body(self, body: bytes, start: int) -> None:
            self.send_response(206 if start else 200)
            if start:
                last = len(site.content)
                self.send_header("Content-Range", f"bytes {start}-{last - 1}/{last}")
            if site.says_length:
                self.send_header("Content-Length", str(len(body)))
            if site.etag:
                self.send_header("ETag", site.etag)
            self.end_headers()
            if site.cut:
                body = body[: site.cut.pop(0)]
            if site.stall:
                body = body[: len(body) // 2]
            self.wfile.write(body)
            self.wfile.flush()
            site.sent.append(len(body))
            if site.stall:
                site.stalled.set()
                self.rfile.read(1)
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            """Keep quiet."""

    return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Run a server on the loopback interface."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "BACKOFF_S", 0.0)
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(site))
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}/file"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(site: Site, path: Path) -> None:
    download(site.url, path, size=len(CONTENT), sha256=SHA256)


def left(folder: Path) -> list[str]:
    """Return the names in a folder but for locks."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_a_file_arrives_whole_and_nothing_else_stays(site: Site, tmp_path: Path) -> None:
    """The content is the server's, and no partial file is left; folders are made."""
    path = tmp_path / "a" / "b" / "file"
    fetch(site, path)
    assert path.read_bytes() == CONTENT
    assert left(path.parent) == ["file"]


def test_a_file_that_is_here_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    """With the right file in place the server is not asked at all."""
    (tmp_path / "file").write_bytes(CONTENT)
    fetch(site, tmp_path / "file")
    assert site.ranges_seen == []


def test_progress_ends_at_the_size(site: Site, tmp_path: Path) -> None:
    """Progress grows and its last report is the file's size."""
    seen: list[int] = []
    path = tmp_path / "file"
    download(site.url, path, size=len(CONTENT), sha256=SHA256, progress=seen.append)
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT)


def test_a_redirect_is_followed(site: Site, tmp_path: Path) -> None:
    """An address that has moved leads to the file."""
    moved = site.url.replace("/file", "/moved")
    download(moved, tmp_path / "file", size=len(CONTENT), sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_cut_download_goes_on_where_it_was_cut(site: Site, tmp_path: Path) -> None:
    """The second request asks for the missing bytes, and only those are sent."""
    site.cut = [3 * CHUNK]
    fetch(site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert site.ranges_seen == [None, f"bytes={3 * CHUNK}-"]
    assert site.sent == [3 * CHUNK, len(CONTENT) - 3 * CHUNK]


def test_a_body_that_ends_early_without_a_length_is_a_cut(site: Site, tmp_path: Path) -> None:
    """A server that announces no length and stops is asked for the rest."""
    site.says_length = False
    site.cut = [1000]
    fetch(site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert site.ranges_seen == [None, "bytes=1000-"]


def test_a_server_that_stays_cut_is_an_error_that_keeps_the_part(
    site: Site, tmp_path: Path
) -> None:
    """After the last try the partial file is all that is left, and a later call finishes it."""
    site.cut = [CHUNK] * module.TRIES
    with pytest.raises(ResourceError, match=r"4 tries.*262,144 of 512,000 bytes are here"):
        fetch(site, tmp_path / "file")
    assert left(tmp_path) == ["file.part"]
    fetch(site, tmp_path / "file")
    assert site.ranges_seen[-1] == "bytes=262144-"
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_again(site: Site, tmp_path: Path) -> None:
    """An answer of 200 to a request for the rest replaces what was there."""
    site.ranges = False
    site.cut = [200_000]
    fetch(site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert site.sent == [200_000, len(CONTENT)]


def test_a_file_that_changes_on_the_way_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    """The entity tag goes with the request for the rest, so a new version comes whole."""
    site.etag, site.cut = '"old"', [CHUNK]
    monitor = threading.Event()

    def change(done: int) -> None:
        if done == CHUNK and not monitor.is_set():
            monitor.set()
            site.etag = '"new"'

    path = tmp_path / "file"
    download(site.url, path, size=len(CONTENT), sha256=SHA256, progress=change)
    assert site.if_ranges_seen == [None, '"old"']
    assert site.sent == [CHUNK, len(CONTENT)]


def test_a_weak_entity_tag_is_not_used_to_resume(site: Site, tmp_path: Path) -> None:
    """If-Range knows strong tags only (RFC 9110, sec. 13.1.5)."""
    site.etag, site.cut = 'W/"x"', [CHUNK]
    fetch(site, tmp_path / "file")
    assert site.if_ranges_seen == [None, None]


def test_a_stale_partial_file_costs_one_more_download(site: Site, tmp_path: Path) -> None:
    """A part whose bytes are another file's is thrown away once the digest shows it."""
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    fetch(site, tmp_path / "file")
    assert site.ranges_seen == ["bytes=1000-", None]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_partial_file_only_gets_its_name(site: Site, tmp_path: Path) -> None:
    """A download killed just before the renaming needs no request."""
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch(site, tmp_path / "file")
    assert site.ranges_seen == []
    assert left(tmp_path) == ["file"]


def test_a_partial_file_longer_than_the_file_is_dropped(site: Site, tmp_path: Path) -> None:
    """A part that can't be a beginning is not resumed."""
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    fetch(site, tmp_path / "file")
    assert site.ranges_seen == [None]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_an_unsatisfiable_range_starts_again(site: Site, tmp_path: Path) -> None:
    """The answer 416 drops the part instead of asking for it again and again."""
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    site.status = [416]
    fetch(site, tmp_path / "file")
    assert site.ranges_seen == ["bytes=1000-", None]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_case_39_a_wrong_digest_is_refused_with_both_digests(site: Site, tmp_path: Path) -> None:
    """A file of the right size and other bytes is removed; the error names both digests."""
    site.content = b"\1" + CONTENT[1:]
    found = hashlib.sha256(site.content).hexdigest()
    with pytest.raises(ArtefactError, match=f"sha256 {found}, expected {SHA256}"):
        fetch(site, tmp_path / "file")
    assert left(tmp_path) == []


def test_a_wrong_file_in_place_stays_until_the_right_one_is_here(
    site: Site, tmp_path: Path
) -> None:
    """A refused download leaves the old file, an accepted one replaces it."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    site.status = [404]
    with pytest.raises(DataError):
        fetch(site, path)
    assert path.read_bytes() == b"old"
    fetch(site, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("says_length", [True, False])
def test_case_39_a_file_longer_than_declared_is_stopped(
    site: Site, tmp_path: Path, says_length: bool
) -> None:
    """No more than the declared size is ever written, announced or not."""
    site.content, site.says_length = CONTENT * 4, says_length
    largest: list[int] = [0]
    with pytest.raises(ArtefactError, match=r"(2,048,000|more) bytes, expected 512,000"):
        download(
            site.url,
            tmp_path / "file",
            size=len(CONTENT),
            sha256=SHA256,
            progress=lambda done: largest.append(done),
        )
    assert max(largest) <= len(CONTENT)
    assert (max(largest) == 0) == says_length
    assert left(tmp_path) == []


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_missing_file_is_bad_data_at_once(site: Site, tmp_path: Path, status: int) -> None:
    """The server's no is not asked for twice."""
    site.status = [status] * 2
    with pytest.raises(DataError, match=f"can't be had: the server answers {status}"):
        fetch(site, tmp_path / "file")
    assert len(site.ranges_seen) == 1
    assert left(tmp_path) == []


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    """503 and 429 pass."""
    site.status = [503, 429]
    fetch(site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_stays_busy_is_out_of_reach(site: Site, tmp_path: Path) -> None:
    """After the last try the error says what the server answers."""
    site.status = [503] * module.TRIES
    with pytest.raises(ResourceError, match=r"server answers 503 .*; 4 tries"):
        fetch(site, tmp_path / "file")


def test_nobody_listening_is_out_of_reach(site: Site, tmp_path: Path) -> None:
    """A refused connection is exit code 5 and names the cause, not a stack of wrappers."""
    with pytest.raises(ResourceError, match=r"\(\[Errno \d+\] Connection refused; 4 tries\)"):
        download("http://127.0.0.1:9/file", tmp_path / "file", size=1, sha256=SHA256)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/file", "file", "http://"])
def test_what_is_no_address_is_refused(tmp_path: Path, url: str) -> None:
    """Only http and https addresses are fetched."""
    with pytest.raises(DataError, match="is no address to download from"):
        download(url, tmp_path / "file", size=1, sha256=SHA256)


def test_a_full_disk_is_an_error_that_names_the_file(site: Site, tmp_path: Path) -> None:
    """A renaming that fails leaves the checked part, and the next call takes it."""
    with faults.fail_nth(1, kinds=["rename"]), pytest.raises(ResourceError, match="cannot write"):
        fetch(site, tmp_path / "file")
    assert left(tmp_path) == ["file.part"]
    fetch(site, tmp_path / "file")
    assert len(site.ranges_seen) == 1


def test_a_read_only_folder_is_an_error_before_anything_is_fetched(
    site: Site, tmp_path: Path
) -> None:
    """No permission to write is exit code 5, and the server is not asked."""
    read_only = OSError(errno.EROFS, "Read-only file system")
    with (
        faults.fail_nth(1, read_only, kinds=["mkdir"]),
        pytest.raises(ResourceError, match="Read-only"),
    ):
        fetch(site, tmp_path / "new" / "file")
    assert site.ranges_seen == []


def test_case_39_a_killed_download_leaves_a_part_and_resumes(site: Site, tmp_path: Path) -> None:
    """SIGKILL half-way: no file under its name, and the next call fetches only what is missing."""
    site.stall = True
    path = tmp_path / "file"
    program = (
        "import sys; from pathlib import Path; from shared.download import download\n"
        f"download({site.url!r}, Path(sys.argv[1]), size={len(CONTENT)}, sha256={SHA256!r},"
        " progress=lambda done: print(done, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert site.stalled.wait(60)
    # Python's buffer and ours hold less than a chunk: this many bytes have been handed over.
    while int(process.stdout.readline() or len(CONTENT)) < 100_000:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left(tmp_path) == ["file.part"]
    have = (tmp_path / "file.part").read_bytes()
    assert 0 < len(have) < len(CONTENT)
    assert CONTENT.startswith(have)
    site.stall = False
    fetch(site, path)
    assert site.ranges_seen[-1] == f"bytes={len(have)}-"
    assert path.read_bytes() == CONTENT


def test_two_downloads_of_one_file_do_not_disturb_each_other(site: Site, tmp_path: Path) -> None:
    """The second waits for the first and finds the file."""
    threads = [threading.Thread(target=fetch, args=(site, tmp_path / "file")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(site.ranges_seen) == 1
