"""Data sets by name and by path, with small registries, folders and a server made here."""

import bz2
import functools
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import corpora, datasets, faults, registry, textfiles
from shared import download as download_module
from shared.datasets import resolve, resolve_again, resolve_default
from shared.errors import ArtefactError, DataError, ResourceError, UsageError
from shared.registry import Entry, Form, Source

PLAY = b"ROMEO: O!\nJULIET: Ay me.\n"
TRAIN, VALID, TEST = b"train text\n", b"valid text\n", b"test text\n"
PRESSED = lzma.compress(TRAIN)
ROWS = b'{"text": "one"}\n\n{"text": "two\\n", "id": 2}\n'
EMBEDDED = {"python-docs": "Some docs.\n", "python-code": "pass\n"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def form(path: str, data: bytes) -> Form:
    return Form(path, len(data), sha256(data))


def entry(part: str, path: str, data: bytes, url: str | None = None) -> Entry:
    return Entry(part, form(path, data), form(path, data), url)


def source(name: str, *entries: Entry, text: bool = True) -> Source:
    return Source(name, f"about {name}", "a licence", f"origin of {name}", text, entries)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run `python -m shared.datasets` and return its exit code and what it printed."""
    with pytest.raises(SystemExit) as end:
        datasets.main(words)
    assert isinstance(end.value.code, int)
    return end.value.code, *capsys.readouterr()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder `$MLE_DATA`, and another one the cache."""
    monkeypatch.setenv("MLE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download_module, "BACKOFF_S", 0.0)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def cache(folder: Path) -> Path:
    """Return where the cache keeps data files; it does not exist yet."""
    return folder.parent / "cache" / "data"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve the folder `public` on the loopback interface and return its address."""
    (tmp_path / "public").mkdir()
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "public"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def known(
    folder: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Source]:
    """Replace the registry by a small one; what has an address is served."""
    (tmp_path / "public" / "play.txt").write_bytes(PLAY)
    (tmp_path / "public" / "train.txt").write_bytes(TRAIN)
    train = Entry(
        "train",
        form("set/train.txt.xz", PRESSED),
        form("set/train.txt", TRAIN),
        f"{server}/train.txt",
    )
    known = {
        "play": source("play", entry("all", "play.txt", PLAY, f"{server}/play.txt")),
        "set": source(
            "set", train, entry("valid", "set/valid", VALID), entry("test", "set/test", TEST)
        ),
        "gone": source("gone", entry("all", "gone.txt", PLAY, f"{server}/gone.txt")),
        "table": source("table", entry("all", "t.bin", b"\xff\xfe", None), text=False),
        "rows": source("rows", entry("all", "rows.jsonl", ROWS)),
    }
    monkeypatch.setattr(registry, "sources", lambda: known)
    monkeypatch.setattr(corpora, "build", EMBEDDED.__getitem__)
    return known


def put(folder: Path, path: str, data: bytes) -> Path:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)
    return folder / path


# ------------------------------------------------------------------ names and their places


def test_the_data_folder_comes_before_the_cache(
    known: dict[str, Source], folder: Path, cache: Path
) -> None:
    """Both have the file; the one in $MLE_DATA is taken, and without it the other."""
    ours, cached = put(folder, "play.txt", PLAY), put(cache, "play.txt", PLAY)
    assert resolve("play").files == (ours,)
    ours.unlink()
    assert resolve("play").files == (cached,)


def test_without_a_data_folder_the_cache_serves(
    known: dict[str, Source], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$MLE_DATA need not be set."""
    monkeypatch.delenv("MLE_DATA")
    assert resolve("play", offline=False).files == (cache / "play.txt",)


def test_what_is_not_here_is_downloaded_into_the_cache(
    known: dict[str, Source], cache: Path
) -> None:
    """The public address fills the cache, and the text is the file's."""
    dataset = resolve("play")
    assert dataset.files == (cache / "play.txt",)
    assert (dataset.text(), dataset.name, dataset.licence) == (PLAY.decode(), "play", "a licence")
    assert dataset.sha256 == sha256(PLAY)


def test_offline_nothing_is_downloaded(known: dict[str, Source], cache: Path) -> None:
    """The error says how to get the file."""
    with pytest.raises(DataError, match=r"fetch play`, put it into \$MLE_DATA as play.txt.*--data"):
        resolve("play", offline=True)
    assert not cache.exists()


def test_an_address_may_serve_the_content_of_a_compressed_file(
    known: dict[str, Source], folder: Path, cache: Path
) -> None:
    """The cache then holds it unpacked, under the same digest."""
    put(folder, "set/valid", VALID)
    put(folder, "set/test", TEST)
    unpacked = resolve("set")
    assert unpacked.path("train") == cache / "set" / "train.txt"
    assert resolve("set", offline=True).files == unpacked.files
    packed = put(folder, "set/train.txt.xz", PRESSED)
    assert resolve("set").path("train") == packed
    assert resolve("set").sha256 == unpacked.sha256
    assert resolve("set").text() == unpacked.text()


def test_what_only_an_archive_holds_says_where_it_comes_from(
    known: dict[str, Source], tmp_path: Path
) -> None:
    """No address serves it: the error names origin, place and the way out."""
    with pytest.raises(
        DataError, match=r"comes from origin of table: put it into \$MLE_DATA as t.bin$"
    ):
        resolve("table")
    with pytest.raises(DataError, match=r"as rows.jsonl, or name another text with --data"):
        resolve("rows")


def test_a_download_that_fails_keeps_its_exit_code_and_says_what_to_do(
    known: dict[str, Source], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """404 is bad data (3), another file an artefact error (4), no server a lack of network (5)."""
    remedy = r"put it into \$MLE_DATA as .*, or name another text with --data PATH"
    with pytest.raises(DataError, match=f"gone can't be had: .* 404 .*{remedy}"):
        resolve("gone")
    wrong = entry("all", "other.txt", PLAY[::-1], f"{server}/play.txt")
    monkeypatch.setitem(known, "wrong", source("wrong", wrong))
    with pytest.raises(ArtefactError, match=f"wrong can't be had: .*{sha256(PLAY)}.*{remedy}"):
        resolve("wrong")
    nowhere = entry("all", "no.txt", PLAY, "http://127.0.0.1:9/no.txt")
    monkeypatch.setitem(known, "nowhere", source("nowhere", nowhere))
    with pytest.raises(ResourceError, match=f"nowhere can't be had: .*{remedy}"):
        resolve("nowhere")


@pytest.mark.parametrize("wrong", [PLAY[:-1], PLAY[::-1], b""])
def test_case_39_a_wrong_file_in_the_data_folder_is_an_error(
    known: dict[str, Source], folder: Path, wrong: bytes
) -> None:
    """Truncated, altered or empty: the error names the file and both digests."""
    path = put(folder, "play.txt", wrong)
    with pytest.raises(ArtefactError, match=r"\$MLE_DATA") as error:
        resolve("play")
    assert all(word in str(error.value) for word in (str(path), sha256(wrong), sha256(PLAY)))


def test_a_wrong_file_in_the_cache_is_an_error_that_says_fetch(
    known: dict[str, Source], cache: Path
) -> None:
    """It is not replaced behind the user's back."""
    path = put(cache, "play.txt", b"wrong")
    with pytest.raises(ArtefactError, match=r"python -m shared\.datasets fetch"):
        resolve("play")
    assert path.read_bytes() == b"wrong"


def test_a_data_folder_that_does_not_exist_is_said(
    known: dict[str, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typo in $MLE_DATA does not pass for an empty folder."""
    monkeypatch.setenv("MLE_DATA", "no-such-folder")
    with pytest.raises(UsageError, match="no-such-folder, which is not a folder"):
        resolve("play")


def test_a_full_disk_while_downloading_is_out_of_resources(known: dict[str, Source]) -> None:
    """Exit code 5, with the data set's name."""
    with faults.fail_nth(1), pytest.raises(ResourceError, match="play can't be had: cannot write"):
        resolve("play")


@pytest.mark.parametrize(
    ("word", "hint"),
    [("plai", "did you mean play?"), ("python-doc", "did you mean python-docs"), ("my-set", "set")],
)
def test_an_unknown_name_is_a_usage_error_with_the_nearest(
    known: dict[str, Source], word: str, hint: str
) -> None:
    """A typo, and a name with a known one in it."""
    with pytest.raises(UsageError, match=re.escape(hint)) as error:
        resolve(word)
    assert "no data set and no file is called" in str(error.value)


def test_an_unknown_name_far_from_all_lists_them(known: dict[str, Source]) -> None:
    """Where none is near, all are named; the same for a missing path."""
    every = "the data sets are play, set, gone, table, rows, python-docs, python-code, words"
    with pytest.raises(UsageError, match=every):
        resolve("QQQQQQQQ")
    with pytest.raises(UsageError, match=r"no data set and no file is called 'no/QQQ\.txt'"):
        resolve(Path("no/QQQ.txt"))


# ------------------------------------------------------------------ the default and its fallback


def test_a_default_that_is_here_is_taken(known: dict[str, Source], folder: Path) -> None:
    """No line is to be printed then."""
    put(folder, "play.txt", PLAY)
    dataset, line = resolve_default("play")
    assert (dataset.name, line) == ("play", None)


@pytest.mark.parametrize("name", ["gone", "rows"])
def test_a_default_that_cant_be_had_gives_way_to_the_embedded_corpus(
    known: dict[str, Source], name: str
) -> None:
    """One line says why and what is used instead; the data set carries its real name."""
    dataset, line = resolve_default(name)
    assert (dataset.name, dataset.text()) == ("python-docs", "Some docs.\n")
    assert line is not None
    assert line.startswith(name)
    assert line.endswith("Using the embedded corpus python-docs instead.")
    assert "\n" not in line


def test_a_wrong_file_is_no_reason_to_fall_back(
    known: dict[str, Source], folder: Path, cache: Path
) -> None:
    """The default's own file with another digest stays an error."""
    path = put(folder, "play.txt", b"wrong")
    with pytest.raises(ArtefactError):
        resolve_default("play")
    path.unlink()
    put(cache, "play.txt", b"wrong")
    with pytest.raises(ArtefactError):
        resolve_default("play")


def test_an_explicit_name_never_falls_back(known: dict[str, Source]) -> None:
    """`resolve` raises where `resolve_default` gives way."""
    with pytest.raises(DataError):
        resolve("gone")


# ------------------------------------------------------------------ texts


def test_splits_are_data_sets_of_their_own(known: dict[str, Source], folder: Path) -> None:
    """Each has its file, its name and its digest."""
    for path, data in [("set/train.txt.xz", PRESSED), ("set/valid", VALID), ("set/test", TEST)]:
        put(folder, path, data)
    splits = resolve("set").splits
    assert {name: split.text() for name, split in splits.items()} == {
        "train": TRAIN.decode(),
        "valid": VALID.decode(),
        "test": TEST.decode(),
    }
    assert splits["train"].sha256 == sha256(TRAIN)
    assert splits["valid"].name == "set valid"
    with pytest.raises(UsageError, match="set has no part 'dev'; it has train, valid, test"):
        resolve("set").part("dev")


def test_a_data_set_without_a_split_has_none(known: dict[str, Source]) -> None:
    """A single file is no train split."""
    assert resolve("play").splits == {}


def test_several_files_are_one_text_with_blank_lines_between(
    known: dict[str, Source], folder: Path
) -> None:
    """In the registry's order; each file is one document."""
    for path, data in [("set/train.txt.xz", PRESSED), ("set/valid", VALID), ("set/test", TEST)]:
        put(folder, path, data)
    dataset = resolve("set")
    assert dataset.text() == "train text\n\n\nvalid text\n\n\ntest text\n"
    assert list(dataset.texts()) == ["train text\n", "valid text\n", "test text\n"]
    lines = "".join(
        f"{name} {sha256(data)}\n"
        for name, data in [("test", TEST), ("train", TRAIN), ("valid", VALID)]
    )
    assert dataset.sha256 == sha256(lines.encode())


def test_each_json_line_is_a_document(known: dict[str, Source], folder: Path) -> None:
    """The text field is read, other fields and blank lines are not."""
    put(folder, "rows.jsonl", ROWS)
    assert list(resolve("rows").texts()) == ["one", "two\n"]
    assert resolve("rows").text() == "one\n\ntwo\n"


def test_what_is_no_text_has_files_only(known: dict[str, Source], folder: Path) -> None:
    """Reading a table as text is refused with the names of texts; its bytes are there."""
    path = put(folder, "t.bin", b"\xff\xfe")
    dataset = resolve("table")
    assert dataset.path() == path
    with pytest.raises(UsageError, match="table is no text to train on; these are: play, set,"):
        dataset.text()
    with dataset.members[0].open() as stream:
        assert stream.read() == b"\xff\xfe"


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".xz", lzma.compress), (".bz2", bz2.compress), (".gz", gzip.compress)]
)
def test_a_compressed_file_reads_as_what_is_in_it(tmp_path: Path, suffix: str, pack) -> None:  # type: ignore[no-untyped-def]
    """The text and the digest are the content's; so with JSON lines."""
    path = put(tmp_path, f"a.txt{suffix}", pack(PLAY))
    assert resolve(path).text() == PLAY.decode()
    assert resolve(path).sha256 == sha256(PLAY)
    assert resolve(put(tmp_path, f"b.jsonl{suffix}", pack(ROWS))).text() == "one\n\ntwo\n"
    for torn in (pack(os.urandom(5000))[:-20], b"no such thing at all"):
        with pytest.raises(DataError, match=rf"a\.txt{suffix} cannot be decompressed"):
            resolve(put(tmp_path, f"a.txt{suffix}", torn))


def test_a_path_is_a_text_file(tmp_path: Path) -> None:
    """Any ending will do; str and Path mean the same; line ends stay as they are."""
    path = put(tmp_path, "my.book", b"a\r\nb")
    assert resolve(path).text() == resolve(str(path)).text() == "a\r\nb"
    assert resolve(path).name == str(path)
    assert resolve(path).sha256 == sha256(b"a\r\nb")


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    """Subfolders too, sorted by path; hidden ones are passed over."""
    for name, data in [("b.txt", b"B"), ("a/z.txt", b"Z"), ("a/y.txt", b"Y")]:
        put(tmp_path / "in", name, data)
    put(tmp_path / "in", ".hidden", b"\xff")
    put(tmp_path / "in", ".git/x", b"\xff")
    assert list(resolve(tmp_path / "in").texts()) == ["Y", "Z", "B"]


def test_a_folders_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    """Compressing a file leaves it as it was; a new name or another byte does not."""
    for name in ("one", "packed"):
        put(tmp_path / name, "a.txt", b"A")
    put(tmp_path / "one", "b.txt", b"B")
    put(tmp_path / "packed", "b.txt.gz", gzip.compress(b"B"))
    digest = resolve(tmp_path / "one").sha256
    assert resolve(tmp_path / "packed").sha256 == digest
    (tmp_path / "one" / "b.txt").rename(tmp_path / "one" / "c.txt")
    assert resolve(tmp_path / "one").sha256 != digest


def test_a_known_name_is_not_a_path(
    known: dict[str, Source], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder called like a data set needs `./`; a Path is always a path."""
    put(folder, "play.txt", PLAY)
    put(folder, "play/mine.txt", b"mine")
    monkeypatch.chdir(folder)
    assert resolve("play").text() == PLAY.decode()
    assert resolve("./play").text() == "mine"
    assert resolve(Path("play")).text() == "mine"


@pytest.mark.parametrize("at", [0, 10, textfiles.BLOCK - 1, textfiles.BLOCK, textfiles.BLOCK + 7])
def test_what_is_not_utf8_is_refused_with_its_place(tmp_path: Path, at: int) -> None:
    """The offset counts from the file's beginning, also beyond the first block read."""
    data = bytearray(b"x" * (textfiles.BLOCK + 100))
    data[at] = 0xFF
    path = put(tmp_path, "a.txt", bytes(data))
    with pytest.raises(DataError, match=rf"a\.txt is not UTF-8 text: byte 0xff at offset {at} "):
        resolve(path)


def test_a_character_cut_off_at_the_end_is_refused(tmp_path: Path) -> None:
    """Half a character at the end of the file is not UTF-8 either."""
    path = put(tmp_path, "a.txt", b"abc" + "é".encode()[:1])
    with pytest.raises(DataError, match="byte 0xc3 at offset 3 "):
        resolve(path)


def test_a_character_across_two_blocks_is_read(tmp_path: Path) -> None:
    """Text is cut between characters, never within one."""
    text = "x" * (textfiles.BLOCK - 1) + "é" + "y"
    assert resolve(put(tmp_path, "a.txt", text.encode())).text() == text


@pytest.mark.parametrize(
    "name", ["empty.txt", "empty.txt.xz", "folder", "folder-of-empty", "blank.jsonl"]
)
def test_empty_data_is_refused(tmp_path: Path, name: str) -> None:
    """No bytes, no files, no documents: all are bad data that names the path."""
    put(tmp_path, "empty.txt", b"")
    put(tmp_path, "empty.txt.xz", lzma.compress(b""))
    put(tmp_path, "blank.jsonl", b'\n{"text": ""}\n')
    put(tmp_path, "folder-of-empty/a.txt", b"")
    (tmp_path / "folder").mkdir()
    for read in (datasets.Dataset.text, lambda dataset: list(dataset.texts())):
        with pytest.raises(DataError, match=rf"{name} (is empty|has no text files|holds no text)"):
            read(resolve(tmp_path / name))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b'"text"', 'is not an object with a string under "text"'),
        (b'{"body": "x"}', 'is not an object with a string under "text"'),
        (b'{"text": 1}', 'is not an object with a string under "text"'),
        (b'{"text": "\\ud800"}', "holds a lone surrogate at character 0"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"text": "' + b"x" * 100 + b'"}', "is longer than 99 bytes"),
    ],
)
def test_a_bad_json_line_is_refused_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, reason: str
) -> None:
    """The error names file and line, and why."""
    if b"xxx" in line:
        monkeypatch.setattr(textfiles, "MAX_LINE", 99)
    path = put(tmp_path, "a.jsonl", b'{"text": "x"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, line 3 {reason}"):
        resolve(path).text()


def test_a_json_line_that_is_not_utf8_is_refused() -> None:
    """The same where the file was not looked through before."""
    stream = io.BytesIO(b'{"text": "x"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match="a, line 2 is not UTF-8 text: byte 0xff at offset 10"):
        list(textfiles.read_documents(stream, "a"))


def test_chunks_are_bounded_and_end_at_lines(tmp_path: Path) -> None:
    """Joined they are the text, none is longer than two blocks, and lines stay whole."""
    text = "".join(f"line {i}\n" for i in range(300_000)) + "z" * (3 * textfiles.BLOCK) + "\nend"
    path = put(tmp_path, "a.txt", text.encode())
    chunks = list(resolve(path).chunks())
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= 2 * textfiles.BLOCK
    lines = [chunk for chunk in chunks if "z" not in chunk]
    assert len(lines) > 2
    assert all(chunk.endswith("\n") for chunk in lines[:-1])


# ------------------------------------------------------------------ embedded corpora


@pytest.mark.parametrize("name", ["python-docs", "words"])
def test_an_embedded_corpus_is_a_data_set(known: dict[str, Source], cache: Path, name: str) -> None:
    """It is built into the cache, and has a digest like any other."""
    dataset = resolve(name, offline=True)
    text = {"python-docs": "Some docs.\n", "words": "docs\nsome\n"}[name]
    assert dataset.text() == text
    assert dataset.sha256 == sha256(text.encode())
    assert dataset.files[0].parent == cache.parent / "embedded"


def test_an_embedded_corpus_needs_no_cache(known: dict[str, Source], cache: Path) -> None:
    """On a disk that takes nothing it is read from memory."""
    with faults.fail_nth(1, lasting=True):
        dataset = resolve("python-docs")
    assert dataset.files == ()
    assert dataset.text() == "Some docs.\n"
    assert dataset.sha256 == sha256(b"Some docs.\n")


# ------------------------------------------------------------------ the command


def test_list_shows_what_is_where(
    known: dict[str, Source], folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a verb too; for each data set size, digest, licence and place."""
    put(folder, "rows.jsonl", ROWS)
    put(cache, "play.txt", PLAY)
    put(folder, "set/valid", VALID)
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert list(rows) == ["name", *known, *corpora.NAMES]
    assert rows["play"].split() == [
        *("play", "0.0", "kB", sha256(PLAY)[:12], "cache", "a", "licence", "about", "play")
    ]
    places = {"rows": "$MLE_DATA", "set": "1 of 3 files", "gone": "to fetch", "table": "not here"}
    assert all(f"  {place}  " in rows[name] for name, place in places.items())
    assert "  embedded  " in rows["words"]
    assert run(capsys, "list") == (code, out, err)


def test_list_speaks_json(
    known: dict[str, Source], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For programs: whole digests and sizes in bytes."""
    put(folder, "play.txt", PLAY)
    resolve("python-docs")
    rows = {row["name"]: row for row in json.loads(run(capsys, "--json")[1])}
    assert rows["play"]["sha256"] == sha256(PLAY)
    assert rows["play"]["bytes"] == len(PLAY)
    assert rows["play"]["where"] == "$MLE_DATA"
    assert rows["python-docs"]["sha256"] == sha256(b"Some docs.\n")
    assert rows["words"]["sha256"] is None


def test_fetch_downloads_and_prints_the_files(
    known: dict[str, Source], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is then in the cache; no bar is drawn where nobody watches."""
    assert run(capsys, "fetch", "play") == (0, f"{cache / 'play.txt'}\n", "")
    assert (cache / "play.txt").read_bytes() == PLAY


def test_fetch_replaces_a_wrong_file_in_the_cache_and_says_so(
    known: dict[str, Source], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr names the file that goes."""
    path = put(cache, "play.txt", b"wrong")
    code, _, err = run(capsys, "fetch", "play")
    assert code == 0
    assert err.startswith(f"replacing a wrong file: {path} ")
    assert path.read_bytes() == PLAY


def test_fetch_leaves_the_data_folder_alone(
    known: dict[str, Source], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong file in $MLE_DATA is the user's to remove."""
    path = put(folder, "play.txt", b"wrong")
    code, _, err = run(capsys, "fetch", "play")
    assert (code, err.count("\n")) == (4, 1)
    assert path.read_bytes() == b"wrong"


@pytest.mark.parametrize(("name", "code"), [("plai", 2), ("rows", 3), ("gone", 3)])
def test_fetch_fails_in_one_line_with_an_exit_code(
    known: dict[str, Source], capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    """An unknown name is 2, what can't be had is 3."""
    found, out, err = run(capsys, "fetch", name)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_fetch_takes_no_path(
    known: dict[str, Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of one's own is not fetched."""
    assert run(capsys, "fetch", str(put(tmp_path, "a.txt", b"x")))[0] == 2


def test_path_prints_where_the_files_are(
    known: dict[str, Source], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One a line, or as JSON by part; nothing is downloaded for it."""
    paths = [
        put(folder, path, data)
        for path, data in [("set/train.txt.xz", PRESSED), ("set/valid", VALID), ("set/test", TEST)]
    ]
    assert run(capsys, "path", "set")[1].splitlines() == [str(path) for path in paths]
    printed = json.loads(run(capsys, "path", "set", "--json")[1])
    assert printed["files"] == dict(zip(("train", "valid", "test"), map(str, paths), strict=True))
    assert printed["sha256"] == known["set"].sha256
    assert run(capsys, "path", "play")[0] == 3


def test_verify_is_content_with_right_files(
    known: dict[str, Source], folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 and a line for each file that is here, embedded corpora included."""
    ours = put(folder, "play.txt", PLAY)
    cached = put(cache, "set/train.txt", TRAIN)
    corpus = resolve("python-docs").files[0]
    code, out, _ = run(capsys, "verify")
    assert code == 0
    assert set(out.splitlines()) == {f"ok     {path}" for path in (ours, cached, corpus)}


def test_verify_finds_every_wrong_file(
    known: dict[str, Source], folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4; each wrong file has its line, the right ones are still checked."""
    wrong = [put(folder, "play.txt", b"x"), put(cache, "set/train.txt", TRAIN[::-1])]
    right = put(folder, "rows.jsonl", ROWS)
    wrong.append(resolve("python-docs").files[0])
    wrong[-1].write_text("torn")
    code, out, err = run(capsys, "verify")
    assert code == 4
    assert err == "error: 3 of 4 files are not what they should be\n"
    assert f"ok     {right}" in out.splitlines()
    assert all(any(line.startswith(f"wrong  {p} is ") for line in out.splitlines()) for p in wrong)
    printed = json.loads(run(capsys, "verify", "--json")[1])
    assert {Path(row["path"]) for row in printed if row["error"]} == set(wrong)


# ------------------------------------------------------------------ the real registry


def test_the_registry_is_sound() -> None:
    """Digests are digests, places are unique and stay below the folder, parts are unique."""
    known = registry.sources()
    entries = [entry for source in known.values() for entry in source.entries]
    forms = {form for entry in entries for form in entry.forms}
    assert len(entries) > 40
    assert all(re.fullmatch("[0-9a-f]{64}", form.sha256) and form.size > 0 for form in forms)
    assert len({form.path for form in forms}) == len(forms)
    assert not [f for f in forms if f.path.startswith("/") or ".." in f.path or "\\" in f.path]
    for source in known.values():
        assert len({entry.part for entry in source.entries}) == len(source.entries)
        assert source.about
        assert source.licence
        assert source.origin
        assert source.name not in corpora.NAMES


def test_compressed_files_have_a_content_of_their_own() -> None:
    """The unpacked form is larger and has another digest; a plain file has one form."""
    for source in registry.sources().values():
        for entry in source.entries:
            if textfiles.plain_name(entry.stored.path) == entry.stored.path:
                assert len(entry.forms) == 1
            else:
                assert entry.content.size > entry.stored.size
                assert entry.content.sha256 != entry.stored.sha256


def test_an_address_says_which_form_it_serves() -> None:
    """Compressed by its ending: the listed file; otherwise the content. All are https."""
    known = registry.sources()
    train, packed = known["wikitext-2"].entries[0], known["hellaswag-text"].entries[0]
    assert train.served == train.content != train.stored
    assert packed.served == packed.stored != packed.content
    urls = [entry.url for source in known.values() for entry in source.entries if entry.url]
    assert len(urls) > 10
    assert all(url.startswith("https://") for url in urls)


def test_the_known_digest_of_tiny_shakespeare() -> None:
    """The registry's first entry is the file that every tutorial uses."""
    assert registry.sources()["shakespeare"].sha256 == (
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    )


def test_the_cache_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$MLE_CACHE decides; otherwise the system's place for caches, in a folder `mle`."""
    monkeypatch.setenv("MLE_CACHE", str(tmp_path))
    assert datasets.cache_folder() == tmp_path
    monkeypatch.delenv("MLE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert datasets.cache_folder().name in ("mle", "Cache")
    assert datasets.cache_folder() != tmp_path


@pytest.mark.skipif("MLE_DATA" not in os.environ, reason="needs the data files in $MLE_DATA")
def test_the_data_folder_here_is_what_the_registry_says() -> None:
    """Every file that is there has its digest, and every text among them reads as one."""
    assert not [error for error in datasets._check_all().values() if error]
    for name, source in registry.sources().items():
        if source.text and all(datasets.find(entry) for entry in source.entries):
            assert sum(map(len, resolve(name, offline=True).chunks())) > 100_000


def test_the_data_of_a_training_are_found_again(folder: Path, tmp_path: Path) -> None:
    """Those named now; else those named then, or the default's name; or a hint at --data."""
    then, now = tmp_path / "then.txt", tmp_path / "now.txt"
    then.write_bytes(PLAY)
    now.write_bytes(TRAIN)
    config = {"data": str(then), "corpus": {"name": "python-docs"}}
    assert resolve_again("", config).text() == PLAY.decode()
    assert resolve_again(str(now), config).text() == TRAIN.decode()
    assert resolve_again("", {**config, "data": ""}).name == "python-docs"
    then.unlink()
    with pytest.raises(UsageError, match=r"not where they were .*name them with --data"):
        resolve_again("", config)
    with pytest.raises(UsageError) as named:
        resolve_again(str(tmp_path / "lost.txt"), config)
    assert "--data" not in str(named.value)
