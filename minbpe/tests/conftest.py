"""What the tests share."""

import importlib.util
import signal
from pathlib import Path

import pytest

from minbpe import RegexTokenizer

TEXT = "the theory of the thaw: the den, the dew\nnaïve café, 1234   times!   or   so\n" * 4


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a small tokenizer with two special tokens, 300 and 301."""
    tokenizer = RegexTokenizer()
    tokenizer.train(TEXT, 290)
    tokenizer.register_special_tokens({"<|endoftext|>": 300, "<|pad|>": 301})
    assert b"  " in tokenizer.vocab.values()  # so that it matters where a run of spaces is cut
    prefix = tmp_path_factory.mktemp("model") / "small"
    tokenizer.save(prefix)
    return prefix.with_suffix(".model")


@pytest.fixture
def more_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find rank files that we may lack in litellm, which brings some, where it is installed."""
    litellm = importlib.util.find_spec("litellm")
    if litellm and litellm.origin:
        folder = Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let programs started by tests be interrupted, also where a shell in the background ran us.

    Such a shell ignores SIGINT, and programs inherit that; a signal that is handled here is reset
    in them.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
