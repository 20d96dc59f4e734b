"""The file either gives back what was saved or is refused with the line that is wrong."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from minbpe import (
    BasicTokenizer,
    RegexTokenizer,
    ResourceError,
    Tokenizer,
    TokenizerFileError,
    UsageError,
)
from minbpe import model_file as files

TEXT = "the theory of the thaw, die Bäche\n" * 3


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save a small tokenizer with two special tokens."""
    tokenizer = RegexTokenizer()
    tokenizer.train(TEXT, 262)
    tokenizer.register_special_tokens({"<|end|>": 262, "<|é ü|>": 270})
    tokenizer.save(tmp_path / "small")
    return tmp_path / "small.model"


def refusal(path: Path, content: bytes) -> str:
    """Write `content`, check that loading it is refused whole, and return the message."""
    path.write_bytes(content)
    tokenizer = RegexTokenizer()
    tokenizer.train("xyzxyz", 257)
    before = (tokenizer.digest(), tokenizer.pattern, tokenizer.encode_ordinary("xyz"))
    with pytest.raises(TokenizerFileError) as error:
        tokenizer.load(path)
    assert error.value.exit_code == 4
    assert before == (tokenizer.digest(), tokenizer.pattern, tokenizer.encode_ordinary("xyz"))
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def parse_refusal(path: Path, content: bytes) -> str:
    """Check that a file with this content is refused, and return the message."""
    with pytest.raises(TokenizerFileError) as error:
        files.parse_model(path, content)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def sealed(lines: list[bytes]) -> bytes:
    """Return a file of these lines with a right checksum, as a clever forger would."""
    body = b"\n".join(lines) + b"\n"
    return body + b"sha256 " + hashlib.sha256(body).hexdigest().encode() + b"\n"


def small(*merges: bytes, count: bytes | None = None, special: tuple[bytes, ...] = ()) -> bytes:
    """Return a file with the given merge lines and a right checksum."""
    head = [b"minbpe v2", b'pattern "x"', b"special_tokens %d" % len(special), *special]
    return sealed([*head, b"merges " + (count or b"%d" % len(merges)), *merges])


def test_a_file_gives_back_pattern_merges_and_special_tokens(saved: Path) -> None:
    """And the same ids, digest and vocabulary size; saving again gives the same bytes."""
    tokenizer = RegexTokenizer("x")
    tokenizer.load(saved)
    assert tokenizer.pattern == RegexTokenizer().pattern
    assert tokenizer.special_tokens == {"<|end|>": 262, "<|é ü|>": 270}
    assert tokenizer.vocab_size == 271
    assert tokenizer.decode(tokenizer.encode_ordinary(TEXT)) == TEXT
    assert saved.read_text().endswith(f"\nsha256 {tokenizer.digest()}\n")
    tokenizer.save(saved.parent / "again")
    assert (saved.parent / "again.model").read_bytes() == saved.read_bytes()


def test_load_brings_the_split_pattern_into_use(tmp_path: Path) -> None:
    """Karpathy's load keeps the pattern string but goes on splitting with the default one."""
    by_letter = RegexTokenizer(r"\w|\W")
    by_letter.train("abab", 257)
    assert by_letter.merges == {}
    by_letter.save(tmp_path / "t")
    whole = RegexTokenizer()
    whole.train("abab", 258)
    assert len(whole.encode_ordinary("abab")) == 1
    whole.load(tmp_path / "t.model")
    assert whole.pattern == r"\w|\W"
    whole.train("abab", 258)
    assert whole.merges == {}


@pytest.mark.parametrize(
    "pattern", ["a b|c ", "x\ny|\n", "\r|\t", '"|\\\\', "é+|\u2028|\x85|\x00", "null", "[ ]"]
)
def test_odd_patterns_survive(tmp_path: Path, pattern: str) -> None:
    """Spaces, line ends, quotes, invisible and non-ASCII characters."""
    tokenizer = RegexTokenizer(pattern)
    tokenizer.save(tmp_path / "t")
    loaded = RegexTokenizer()
    loaded.load(tmp_path / "t.model")
    assert loaded.pattern == pattern


def test_odd_special_tokens_survive(tmp_path: Path) -> None:
    """Karpathy's file splits special tokens at spaces."""
    odd = ["<|a b|>", " ", "\n", "Ende é", "中", '"', "\\", "\u2028", "sha256 0", "\x7f"]
    tokenizer = RegexTokenizer()
    tokenizer.register_special_tokens({text: 300 + k for k, text in enumerate(odd)})
    tokenizer.save(tmp_path / "t")
    loaded = RegexTokenizer()
    loaded.load(tmp_path / "t.model")
    assert loaded.special_tokens == tokenizer.special_tokens
    # An editor that breaks lines at U+2028 or U+0085 shows as many lines as there are.
    text = (tmp_path / "t.model").read_text(encoding="utf-8")
    assert len(text.splitlines()) == text.count("\n") == len(odd) + 5


def test_a_file_can_be_read_by_a_learner(tmp_path: Path) -> None:
    """The documented example is what is written."""
    tokenizer = RegexTokenizer(r" ?\p{L}+|\s+")
    tokenizer.train("hug hug", 258)
    tokenizer.register_special_tokens({"<|endoftext|>": 258})
    tokenizer.save(tmp_path / "t")
    lines = (tmp_path / "t.model").read_text().splitlines()
    documented = [line[4:] for line in (files.__doc__ or "").splitlines() if line[:4] == "    "]
    assert lines[:-1] == documented[: len(lines) - 1]
    assert documented[len(lines) - 1].startswith("sha256 ")


def test_bytes_that_are_no_text_and_long_tokens_are_shown_briefly() -> None:
    r"""A lone byte as \xe4, a long token by its start and its size."""
    assert files.render_token(b"\xe4hu\n") == r'"\\xe4hu\n"'
    assert files.render_token(b"a" * 1000) == f'"{"a" * 64}" and on to 1000 bytes'


def test_basic_and_regex_files_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """The message says which class to use, and the tokenizer stays as it was."""
    BasicTokenizer().save(tmp_path / "basic")
    RegexTokenizer().save(tmp_path / "regex")
    with pytest.raises(UsageError, match="load it with BasicTokenizer"):
        RegexTokenizer().load(tmp_path / "basic.model")
    with pytest.raises(UsageError, match="load it with RegexTokenizer"):
        BasicTokenizer().load(tmp_path / "regex.model")
    BasicTokenizer().load(tmp_path / "basic.model")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    """Exit code 2, and the path in the message."""
    with pytest.raises(UsageError, match=r"none\.model cannot be read: No such file") as error:
        RegexTokenizer().load(tmp_path / "none.model")
    assert error.value.exit_code == 2


# ---- karpathy's files


def test_files_of_karpathys_minbpe_are_read(tmp_path: Path) -> None:
    """Version 1, with a special token that holds a space."""
    path = tmp_path / "v1.model"
    path.write_text("minbpe v1\n\\w+| \n2\n<|a b|> 300\n<|c|> 301\n97 98\n256 99\n")
    tokenizer = RegexTokenizer()
    tokenizer.load(path)
    assert tokenizer.pattern == r"\w+| "
    assert tokenizer.special_tokens == {"<|a b|>": 300, "<|c|>": 301}
    assert tokenizer.merges == {(97, 98): 256, (256, 99): 257}
    assert tokenizer.vocab[257] == b"abc"
    basic = BasicTokenizer()
    path.write_text("minbpe v1\n\n0\n97 98\n")
    basic.load(path)
    assert basic.encode("abab") == [256, 256]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"minbpe v1\n", "line 2: the file ends too early"),
        (b"minbpe v1\nx\n1\n", "line 3: announces 1 lines|line 4: the file ends"),
        (b"minbpe v1\nx\ntwo\n", "line 3: the count of special tokens 'two' is not a number"),
        (b"minbpe v1\nx\n999999999999\n", "line 3: .* too large"),
        (b"minbpe v1\nx\n0\n97 257\n", "line 4: token 256 is made of token 257, which comes later"),
        (b"minbpe v1\nx\n0\n97 98 99\n", "line 4: a merge is two ids"),
        (b"minbpe v1\nx\n0\n97 98\n97 98\n", "line 5: the merge of 97 and 98 is there twice"),
        (b"minbpe v1\nx\n0\n97 98\n97 9", "line 5: the last line has no end"),
        (b"minbpe v1\nx\n1\n<|a|> 256\n97 98\n", "has id 256, which another token has"),
        (b"minbpe v1\nx\n2\na 300\na 301\n", "line 5: special token 'a' is empty or repeated"),
    ],
)
def test_a_broken_file_of_karpathys_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """Such a file has no checksum, but nonsense is nonsense."""
    assert re.search(message, refusal(tmp_path / "v1.model", content))


# ---- rows 9, 10 and 11 of FAULTS.md


def test_case_09_a_file_truncated_anywhere_is_refused(saved: Path) -> None:
    """At each of its bytes."""
    content = saved.read_bytes()
    for end in range(len(content)):
        refusal(saved, content[:end])


def test_case_09_any_flipped_bit_is_refused(saved: Path) -> None:
    """Each bit of each byte."""
    content = saved.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            parse_refusal(saved, bytes(flipped))
    refusal(saved, bytes(flipped))


def test_case_09_swapped_lines_are_refused_by_number(saved: Path) -> None:
    """Any two lines, also when the checksum is made to fit."""
    lines = saved.read_bytes().splitlines()[:-1]
    for i in range(len(lines)):
        for j in range(i):
            swapped = list(lines)
            swapped[i], swapped[j] = lines[j], lines[i]
            found = refusal(saved, sealed(swapped))
            assert f"line {j + 1}: " in found or f"line {i + 1}: " in found


def test_case_09_a_newer_version_is_refused_as_newer(saved: Path) -> None:
    """So that nobody looks for damage."""
    content = saved.read_bytes().replace(b"minbpe v2", b"minbpe v4")
    assert "line 1: 'minbpe v4' was written by a newer minbpe" in refusal(saved, content)


def test_case_09_something_else_is_refused(saved: Path) -> None:
    """An empty file, a picture, text behind the checksum, a file that is too big."""
    content = saved.read_bytes()
    assert "line 1: not a minbpe file" in refusal(saved, b"")
    assert "line 2: byte 9 of the file is not UTF-8" in refusal(saved, b"minbpe v\n\xff")
    assert "goes on after its checksum" in refusal(saved, content + b"\n")
    assert "the checksum does not fit" in refusal(saved, content[:-3] + b"00\n")


def test_case_09_a_huge_file_is_refused_unread(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its size, before it is read into memory."""
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(TokenizerFileError, match=r"bytes; a tokenizer file has no more than 10"):
        RegexTokenizer().load(saved)


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (b'256 97 257 "a"', "token 256 is made of token 257, which comes later"),
        (b'256 256 97 "a"', "token 256 is made of token 256, which comes later"),
        (b'256 97 9223372036854775808 "a"', "id 9223372036854775808 is too large"),
        (b'256 97 1114112 "a"', "id 1114112 is too large"),
        (b'256 97 -1 "a"', "id '-1' is not a number"),
        (b'256 97 0098 "ab"', "id '0098' is not a number"),
        ('256 97 \u0669\u0668 "ab"'.encode(), "is not a number"),
        (b'257 97 98 "ab"', "id 257 where 256 must come"),
        (b'256 97 98 "ac"', 'tokens 97 and 98 make "ab", the line says "ac"'),
        (b"256 97 98", "a merge is 'id left right \"token\"'"),
    ],
)
def test_case_10_an_impossible_merge_is_refused_at_its_line(
    tmp_path: Path, merge: bytes, message: str
) -> None:
    """Even when the checksum fits."""
    found = refusal(tmp_path / "t.model", small(merge))
    assert "line 5: " in found
    assert message in found


def test_case_10_a_repeated_merge_and_a_doubled_id_are_refused(tmp_path: Path) -> None:
    """Two ids for one pair, or one id for two tokens."""
    path = tmp_path / "t.model"
    found = refusal(path, small(b'256 97 98 "ab"', b'257 97 98 "ab"'))
    assert "line 6: the merge of 97 and 98 is there twice" in found
    found = refusal(path, small(b'256 97 98 "ab"', special=(b'256 "<|x|>"',)))
    assert "special token '<|x|>' has id 256, which another token has" in found
    found = refusal(path, small(special=(b'300 "x"', b'300 "y"')))
    assert 'line 5: special token "y" is empty, repeated or out of order' in found
    assert "line 4: special token null" in refusal(path, small(special=(b"300 null",)))
    found = refusal(path, small(special=(rb'300 "\u0061"',)))
    assert "is not a quoted string as minbpe writes it" in found
    assert "line 4: '{}' is not a quoted string" in refusal(path, small(special=(b"300 {}",)))


def test_case_10_tokens_that_double_without_end_are_refused(tmp_path: Path) -> None:
    """Forty merges of a token with itself would make one of a terabyte."""
    lines = [b"97 97", *(b"%d %d" % (idx, idx) for idx in range(256, 296))]
    found = refusal(tmp_path / "t.model", b"minbpe v1\nx\n0\n" + b"\n".join(lines) + b"\n")
    assert f"the tokens have more than {files.MAX_VOCAB_BYTES} bytes together" in found


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (b"1000000000", "the count of merges 1000000000 is too large"),
        (b"1" + b"0" * 5000, "is too large"),
        (b"1000000", "announces 1000000 lines, the file ends before"),
        (b"-1", "is not a number"),
        (b"1e9", "is not a number"),
    ],
)
def test_case_11_a_header_that_claims_too_much_is_refused(
    tmp_path: Path, count: bytes, message: str
) -> None:
    """By a cap and by the lines there are, before anything is allocated."""
    found = refusal(tmp_path / "t.model", small(b'256 97 98 "ab"', count=count))
    assert "line 4: " in found
    assert message in found


# ---- the file of a tokenizer by ranks


RANKS = {bytes([255 - byte]): byte for byte in range(256)} | {b"hu": 256, b"\xc3\xa4": 300}


@pytest.fixture
def ranked(tmp_path: Path) -> Path:
    """Write a small tokenizer by ranks, with a gap in its ids."""
    special = {"<|end|>": 299, "<|é ü|>": 301}
    files.write_model(tmp_path / "r.model", files.RankModel(r"\s+|\S+", RANKS, special))
    return tmp_path / "r.model"


def rank_lines(*changed: tuple[int, bytes]) -> list[bytes]:
    """Return the lines of the smallest file, with some of them changed (by number, from 1)."""
    model = files.RankModel("x", {bytes([byte]): byte for byte in range(256)})
    lines = model.render().splitlines()[:-1]
    for number, line in changed:
        lines[number - 1] = line
    return lines


def test_a_rank_file_gives_back_what_was_written(ranked: Path) -> None:
    """Ranks in the order of their ids, pattern and special tokens; the same bytes again."""
    model = files.read_model(ranked)
    assert isinstance(model, files.RankModel)
    assert list(model.ranks.items()) == list(RANKS.items())
    assert model.pattern == r"\s+|\S+"
    assert model.special_tokens == {"<|end|>": 299, "<|é ü|>": 301}
    assert model.render() == ranked.read_bytes()
    assert ranked.read_text(encoding="utf-8").endswith(f"\nsha256 {model.digest()}\n")


def test_a_rank_file_can_be_read_by_a_learner(ranked: Path) -> None:
    """Id, base64 and text on a line, as the documentation shows."""
    lines = ranked.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "minbpe v3"
    assert lines[4] == '301 "<|é ü|>"'
    assert lines[5:7] == ["tokens 258", r'0 /w== "\\xff"']
    assert lines[-3:-1] == ['256 aHU= "hu"', '300 w6Q= "ä"']
    assert '    256 aHU= "hu"\n' in (files.__doc__ or "")


def test_case_09_a_rank_file_truncated_anywhere_is_refused(ranked: Path) -> None:
    """At each of its bytes."""
    content = ranked.read_bytes()
    for end in range(len(content)):
        parse_refusal(ranked, content[:end])


def test_case_09_a_flipped_bit_in_a_rank_file_is_refused(ranked: Path) -> None:
    """One bit of each byte, and another one of the next."""
    content = ranked.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place * 5 % 8
        parse_refusal(ranked, bytes(flipped))


def test_case_09_swapped_lines_of_a_rank_file_are_refused_by_number(ranked: Path) -> None:
    """Neighbours and lines far apart, also when the checksum is made to fit."""
    lines = ranked.read_bytes().splitlines()[:-1]
    for i in range(1, len(lines)):
        for j in (i - 1, i // 2):
            swapped = list(lines)
            swapped[i], swapped[j] = lines[j], lines[i]
            found = parse_refusal(ranked, sealed(swapped))
            # An id that comes too early shows at the one after it, as ids may have gaps.
            assert any(f"line {k + 1}: " in found for k in (j, j + 1, i))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'9223372036854775808 YQ== "a"', "id 9223372036854775808 is too large"),
        (b'1114112 YQ== "a"', "id 1114112 is too large"),
        (b'-1 YQ== "a"', "id '-1' is not a number"),
        (b'097 YQ== "a"', "id '097' is not a number"),
        (b'96 YQ== "a"', "token 96 is empty, there twice or out of order"),
        (b'97 YA== "`"', "token 97 is empty, there twice or out of order"),
        (b'97  ""', "token 97 is empty, there twice or out of order"),
        (b'97 YQ== "b"', 'the bytes are "a", the line says YQ== "b"'),
        (b"97 YQ==", 'the bytes are "a", the line says YQ=='),
        (b'97 YR== "a"', 'the bytes are "a", the line says YR=='),
        (b'97 YQ "a"', "a token is 'id base64 \"text\"'"),
        ('97 ä== "a"'.encode(), "a token is 'id base64 \"text\"'"),
        (b"97", "token 97 is empty, there twice or out of order"),
    ],
)
def test_case_10_an_impossible_token_is_refused_at_its_line(
    tmp_path: Path, line: bytes, message: str
) -> None:
    """Even when the checksum fits."""
    found = parse_refusal(tmp_path / "r.model", sealed(rank_lines((102, line))))
    assert "line 102: " in found
    assert message in found


def test_case_10_a_missing_byte_and_a_doubled_id_are_refused(tmp_path: Path) -> None:
    """Without a byte some text has no ids; a special token's id is its own."""
    path = tmp_path / "r.model"
    found = parse_refusal(path, sealed(rank_lines((102, b'97 YWI= "ab"'))))
    assert "the byte 0x61 is no token; all 256 must be" in found
    special = [(3, b'special_tokens 1\n97 "<|x|>"')]
    found = parse_refusal(path, sealed(rank_lines(*special)))
    assert "special token '<|x|>' has id 97, which another token has" in found


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (b"1000000000", "the count of tokens 1000000000 is too large"),
        (b"1" + b"0" * 5000, "is too large"),
        (b"1000000", "announces 1000000 lines, the file ends before"),
        (b"255", "line 259: the byte 0xff is no token"),
        (b"-1", "is not a number"),
    ],
)
def test_case_11_a_rank_file_that_claims_too_much_is_refused(
    tmp_path: Path, count: bytes, message: str
) -> None:
    """By a cap and by the lines there are, before anything is allocated."""
    found = parse_refusal(tmp_path / "r.model", sealed(rank_lines((4, b"tokens " + count))))
    assert message in found


# ---- writing


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at fsync: exit code 5, and the file is what it was."""
    before = saved.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"small\.model cannot be written: No space") as error:
        RegexTokenizer().save(saved.parent / "small")
    assert error.value.exit_code == 5
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["small.model"]


def test_a_file_is_complete_on_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write, fsync the file, rename, fsync the folder."""
    steps: list[str] = []
    content = RegexTokenizer()._model().render()
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        size = os.fstat(handle).st_size
        steps.append("fsync file" if size == len(content) else "fsync folder")
        fsync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append(f"rename {self.read_bytes() == content}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    RegexTokenizer().save(tmp_path / "t")
    assert steps == ["fsync file", "rename True", "fsync folder"]


@pytest.mark.parametrize("tokenizer", [BasicTokenizer(), RegexTokenizer()])
def test_saving_into_a_missing_folder_is_a_usage_error(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Exit code 2, with the folder named."""
    with pytest.raises(UsageError, match="none does not exist"):
        tokenizer.save(tmp_path / "none" / "t")
