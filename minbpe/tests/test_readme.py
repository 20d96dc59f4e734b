"""The README says what is so."""

import re
from pathlib import Path

import pytest

from minbpe import GPT4_SPLIT_PATTERN, BasicTokenizer, RegexTokenizer, get_stats
from minbpe.pretokens import Splitter

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of one language."""
    text = README.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def test_the_first_example_gives_what_its_comments_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line with a value in its comment is evaluated and compared."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    checked = 0
    for line in blocks("python")[0].splitlines():
        code, _, comment = line.partition("  #")
        if comment and not code.startswith("tokenizer =") and comment.strip()[0] in "[b'":
            assert repr(eval(code, names)) == comment.strip()
            checked += 1
        else:
            exec(line, names)
    assert checked == 4
    assert (tmp_path / "hugs.model").exists()


def test_the_file_shown_is_the_file_written(tmp_path: Path) -> None:
    """Down to its checksum."""
    tokenizer = RegexTokenizer(r" ?\p{L}+|\s+")
    tokenizer.train("hug hug", 258)
    tokenizer.register_special_tokens({"<|endoftext|>": 258})
    tokenizer.save(tmp_path / "t")
    written = (tmp_path / "t.model").read_text()
    assert any(block == written for block in blocks(""))


def test_every_module_is_in_the_reading_order() -> None:
    """And no other is."""
    named = set(re.findall(r"`(\w+\.py)`", README.read_text(encoding="utf-8")))
    modules = {path.name for path in (README.parent / "src" / "minbpe").glob("*.py")}
    assert named - {"test_trainer.py", "test_tiktoken.py"} == modules - {"__init__.py"}


def test_the_answers_of_the_exercises_are_right() -> None:
    """In the order of the README."""
    ours, theirs = BasicTokenizer(), BasicTokenizer()
    ours.train("aaabdaaabac", 259)
    theirs.train("aaabdaaabac", 259, tie_break="minbpe")
    assert ours.merges != theirs.merges
    ids = [258, 100, 258, 97, 99]
    assert ours.encode("aaabdaaabac") == theirs.encode("aaabdaaabac") == ids
    assert get_stats([97, 97, 97]) == {(97, 97): 2}
    assert Splitter(GPT4_SPLIT_PATTERN).split("1234567") == ["123", "456", "7"]
    ours.train("ab" * 8, 260)
    assert max(map(len, ours.vocab.values())) == 16
    smile = list("😀".encode())
    untrained = BasicTokenizer()
    for k in (1, 2, 3):
        assert "�" in untrained.decode(smile[:k])
        assert "�" in untrained.decode(smile[k:])
        parts = untrained.decode_bytes(smile[:k]) + untrained.decode_bytes(smile[k:])
        assert parts.decode() == "😀"
