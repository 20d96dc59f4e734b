"""`python -m gpt2.verify_data`: all that is wrong with the cached tokens, in one pass."""

from pathlib import Path

import pytest

from gpt2.data import corpus_folder, load_corpus
from gpt2.verify_data import main
from minbpe import RegexTokenizer
from shared import cli
from shared.datasets import resolve
from shared.faults import corrupt

VOCAB = 270


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a text, with a cache of its own and no network."""
    monkeypatch.setenv("MLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLE_DATA", raising=False)
    monkeypatch.setattr("shared.datasets.download", None)
    path = tmp_path / "kings.txt"
    path.write_text("the king sat on the throne, and the queen too. " * 40)
    return path


@pytest.fixture
def tokens(text: Path) -> Path:
    load_corpus(resolve(text), VOCAB)
    return corpus_folder(resolve(text), VOCAB)


def verify(text: Path, *flags: object) -> int:
    words = ["--data", str(text), "--vocab-size", str(VOCAB), *map(str, flags)]
    return cli.execute(main, words, "python -m gpt2.verify_data")


def test_whole_tokens_pass(text: Path, tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, and the folder is named."""
    assert verify(text) == 0
    assert capsys.readouterr().out == f"{tokens}: all is whole\n"


def test_tokens_that_were_never_made_are_a_mistake_of_usage(
    text: Path, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another vocabulary has no tokens yet: exit 2 and how to get them."""
    assert verify(text, "--vocab-size", 300) == 2
    assert "has no tokens of --vocab-size 300 yet" in capsys.readouterr().err


def test_every_damaged_file_is_named_at_once(
    text: Path, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit, a missing shard, a torn tokenizer and lost sizes: four lines, exit 4."""
    corrupt(tokens / "validation-00000.tokens", "flip", seed=3)
    (tokens / "train-00000.tokens").unlink()
    corrupt(tokens / "tokenizer.model", "truncate")
    (tokens / "bytes.json").write_text("{")
    assert verify(text) == 4
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    for name in ("train-00000.tokens", "validation-00000.tokens", "tokenizer.model", "bytes.json"):
        assert sum(name in line.partition(":")[0] for line in lines) == 1, printed.out
    assert "delete the folder" in printed.err
    assert printed.err.count("\n") == 1


def test_a_part_that_is_gone_altogether_is_missed(
    text: Path, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither index nor shards of the validation text, no tokenizer and no sizes."""
    for path in (*tokens.glob("validation*"), tokens / "tokenizer.model", tokens / "bytes.json"):
        path.unlink()
    assert verify(text) == 4
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for name, line in zip(("validation.json", "tokenizer.model", "bytes.json"), lines, strict=True):
        assert name in line


def test_a_tokenizer_that_did_not_make_the_tokens_is_found(
    text: Path, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole tokenizer, but of another text: exit 4 with both digests."""
    other = RegexTokenizer()
    other.train("another text " * 9, 260)
    other.save(str(tokens / "tokenizer"))
    assert verify(text) == 4
    assert other.digest()[:12] in capsys.readouterr().out


def test_after_deleting_the_folder_training_makes_it_again(text: Path, tokens: Path) -> None:
    """The remedy that the message names works."""
    corrupt(tokens / "train-00000.tokens", "truncate")
    assert verify(text) == 4
    for path in tokens.iterdir():
        path.unlink()
    tokens.rmdir()
    load_corpus(resolve(text), VOCAB)
    assert verify(text) == 0
