"""Documents come out of files whole, in pieces whose ids are those of the whole."""

import io
import json
import lzma
from pathlib import Path

import pytest

from minbpe.documents import (
    STDIN,
    Piece,
    find_texts,
    no_cut,
    read_pieces,
    read_text,
    total_bytes,
)
from minbpe.errors import DataError, UsageError


def after_newline(text: str, start: int) -> int | None:
    """Cut after any newline that something follows."""
    found = text.find("\n", start)
    return found + 1 if 0 <= found < len(text) - 1 else None


def test_a_text_is_cut_into_pieces_of_a_size_at_least(tmp_path: Path) -> None:
    """Joined they are the text; only the last one ends the document."""
    text = "".join(f"line {number}\n" for number in range(100))
    path = tmp_path / "a.txt"
    path.write_text(text)
    pieces = list(read_pieces([str(path)], after_newline, size=50))
    assert "".join(piece.text for piece in pieces) == text
    assert all(50 <= len(piece.text) < 60 for piece in pieces[:-1])
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert sum(piece.read for piece in pieces) == len(text)


def test_a_text_without_a_place_to_cut_is_one_piece(tmp_path: Path) -> None:
    """Also when it is empty."""
    (tmp_path / "a").write_text("x" * 100)
    (tmp_path / "b").write_text("")
    pieces = list(read_pieces([str(tmp_path / "a"), str(tmp_path / "b")], after_newline, size=9))
    assert pieces == [Piece("x" * 100, True, 100), Piece("", True, 0)]


def test_a_text_too_long_to_be_one_piece_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it fills the memory."""
    monkeypatch.setattr("minbpe.documents.MAX_WHOLE", 99)
    (tmp_path / "a").write_text("x" * 100)
    with pytest.raises(DataError, match="a has more than 99 characters without a place to cut it"):
        list(read_pieces([str(tmp_path / "a")], after_newline, size=9))


def test_lines_of_jsonl_are_documents(tmp_path: Path) -> None:
    """Whatever their length; blank lines are none; a lone surrogate passes."""
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "one\\ntwo", "id": 3}', "", '{"text": "\\ud800"}', '{"text": ""}']
    path.write_text("\n".join(lines))
    pieces = list(read_pieces([str(path)], after_newline, size=1))
    assert [piece.text for piece in pieces] == ["one\ntwo", "\ud800", ""]
    assert all(piece.ends for piece in pieces)
    path.write_text(json.dumps({"body": "b"}))
    assert [p.text for p in read_pieces([str(path)], after_newline, field="body")] == ["b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "torn', "a.jsonl, line 2: not JSON"),
        ("[" * 100_000, "a.jsonl, line 2: not JSON"),
        ('{"body": "b", "id": 1}', r"a.jsonl, line 2: has no text in 'text' \(it has: body, id\)"),
        ('["text"]', r"line 2: has no text in 'text' \(it has: no object\)"),
        ('{"text": 1}', "line 2: has no text in 'text'"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str, message: str) -> None:
    """With what is wrong about it."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        list(read_pieces([str(path)], after_newline))


def test_case_13_invalid_utf8_is_named_by_line_and_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of a read, in a character cut in two, and at the end of the file."""
    monkeypatch.setattr("minbpe.documents.READ_BYTES", 4)
    for data, line, byte, value in [
        (b"ab\ncd\n\xe9f", 3, 6, "e9"),
        ("abé".encode() + b"\nab\xc3", 2, 7, "c3"),
        ("ab\né".encode()[:-1] + b"x", 2, 3, "c3"),
        (b"abc\xe2\x82\n", 1, 3, "e2"),
    ]:
        with pytest.raises(DataError) as caught:
            list(read_text(io.BytesIO(data), "f"))
        assert str(caught.value).startswith(f"f, line {line}: byte {byte} (0x{value}) is not UTF-8")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 2: byte 24 \(0xe9\) is not UTF-8"):
        list(read_pieces([str(path)], after_newline))


def test_bytes_full_of_nuls_are_no_text_and_a_few_are(tmp_path: Path) -> None:
    """Two in five at the start are UTF-16, which may be valid UTF-8, or no text at all."""
    path = tmp_path / "a"
    for data, fine in [(b"a\0bcd", True), (b"a\0bc\0", False), ("text".encode("utf-16"), False)]:
        path.write_bytes(data)
        if fine:
            assert [piece.text for piece in read_pieces([path], no_cut)] == [data.decode()]
            continue
        with pytest.raises(DataError, match=r"a holds NUL bytes all over|is not UTF-8"):
            list(read_pieces([path], no_cut))
    path.write_bytes(b"x" * 200_000 + b"\0" * 100_000)
    assert len(next(read_pieces([path], no_cut)).text) == 300_000


def test_bytes_are_counted_as_they_lie_on_disk(tmp_path: Path) -> None:
    """Packed, and of a pipe too, where no position can be asked for."""
    packed = tmp_path / "a.jsonl.xz"
    packed.write_bytes(lzma.compress(b'{"text": "one"}\n{"text": "two"}\n' * 1000))
    pieces = list(read_pieces([packed], no_cut))
    assert len(pieces) == 2000
    assert sum(piece.read for piece in pieces) == packed.stat().st_size


def test_names_mean_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths, folders, stdin; `./-` is a file of that name."""
    monkeypatch.chdir(tmp_path)
    for name in ("-", "more/b", "more/a", "more/.hidden", "more/empty"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("" if name == "more/empty" else "text")
    found = [Path("more/a"), Path("more/b"), STDIN, tmp_path / "-"]
    assert find_texts(["more", "-", "./-"]) == found
    assert total_bytes([*found[:2], found[3]]) == 12
    assert total_bytes(found) is None


def test_text_is_not_changed_by_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Line ends, NULs and characters cut in two by a read stay as they are."""
    monkeypatch.setattr("minbpe.documents.READ_BYTES", 3)
    text = "a\r\nb\rc\x00é€😀\ufeff"
    parts = list(read_text(io.BytesIO(text.encode()), "f"))
    assert "".join(parts) == text


def test_what_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    """A missing file, a folder."""
    for path, reason in [(tmp_path / "none", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(UsageError, match=f"{path.name} cannot be read: {reason}"):
            list(read_pieces([str(path)], after_newline))
