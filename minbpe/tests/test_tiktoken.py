"""Our ids are tiktoken's when it is given our vocabulary."""

import random

import pytest

from minbpe import RegexTokenizer
from minbpe.pretokens import GPT2_SPLIT_PATTERN, GPT4_SPLIT_PATTERN

tiktoken = pytest.importorskip("tiktoken", reason="the peer we compare with is not installed")

TEXT = (
    "The quick brown fox doesn't jump; 12345 dogs sleep.\n\n    def f(x):\n        return x\n"
    "Grüße aus München, 你好世界, привет мир, שלום 😀👍🏽 e\u0301t\u00e9\u00a0½\r\n"
    "\t\x00\x1c don'T 'ſ\n"
) * 3
PIECES = [*TEXT, *TEXT.split(), "\ud800", "\udfff", "\ud83d\ude00", "  ", "\n ", "aaaa", "'LL"]


@pytest.mark.parametrize("pattern", [GPT2_SPLIT_PATTERN, GPT4_SPLIT_PATTERN])
def test_ids_equal_tiktokens_on_random_unicode(pattern: str) -> None:
    """Words, spaces, digits, emoji, lone surrogates, special tokens."""
    tokenizer = RegexTokenizer(pattern)
    tokenizer.train(TEXT, 600)
    special = {"<|end|>": tokenizer.vocab_size}
    tokenizer.register_special_tokens(special)
    peer = tiktoken.Encoding(
        "ours",
        pat_str=pattern,
        mergeable_ranks={token: idx for idx, token in tokenizer.vocab.items()},
        special_tokens=special,
    )
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choices([*PIECES, "<|end|>"], k=rng.randint(0, 25)))
        assert tokenizer.encode_ordinary(text) == peer.encode_ordinary(text), repr(text)
        ids = tokenizer.encode(text, allowed_special="all")
        assert ids == peer.encode(text, allowed_special="all"), repr(text)
        assert tokenizer.decode_bytes(ids) == peer.decode_bytes(ids)
