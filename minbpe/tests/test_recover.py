"""Merges recovered from ranks are those that made the tokens."""

import math
import random

import pytest

from minbpe import RegexTokenizer
from minbpe.recover import differing_token, recover_merges


def recover_slowly(ranks: dict[bytes, int]) -> dict[tuple[int, int], int]:
    """Do on each token's bytes all merges of lower rank, one rank after the other."""
    merges = {}
    in_order = sorted(ranks.items(), key=lambda item: item[1])
    for token, rank in in_order:
        parts = [token[k : k + 1] for k in range(len(token))]
        for lower, _ in in_order[: in_order.index((token, rank))]:
            k = 0
            while k < len(parts) - 1:
                if parts[k] + parts[k + 1] == lower:
                    parts[k : k + 2] = [lower]
                k += 1
        if len(parts) == 2:
            merges[ranks[parts[0]], ranks[parts[1]]] = rank
    return merges


def encode(ranks: dict[bytes, int], word: bytes, merges: dict[tuple[int, int], int]) -> list[int]:
    """Encode a word by ranks, as tiktoken does, or by merges where there are some."""
    if word in ranks:
        return [ranks[word]]
    parts = [word[k : k + 1] for k in range(len(word))]

    def turn(k: int) -> float:
        a, b = parts[k], parts[k + 1]
        found = merges.get((ranks[a], ranks[b])) if merges else ranks.get(a + b)
        return math.inf if found is None else found

    while len(parts) > 1:
        k = min(range(len(parts) - 1), key=turn)
        if turn(k) == math.inf:
            break
        parts[k : k + 2] = [parts[k] + parts[k + 1]]
    return [ranks[part] for part in parts]


def test_the_merges_of_a_trained_tokenizer_are_recovered_from_its_tokens() -> None:
    """In their order."""
    tokenizer = RegexTokenizer()
    tokenizer.train("a banana, an ananas, aaaa bananas; aa aaa baaan\n" * 3, 290)
    ranks = {token: idx for idx, token in tokenizer.vocab.items()}
    assert list(recover_merges(ranks).items()) == list(tokenizer.merges.items())
    assert differing_token(ranks, tokenizer.merges) is None


@pytest.mark.parametrize("first", [0, 1000])
def test_recovered_merges_say_what_ranks_say(first: int) -> None:
    """On random vocabularies, with bytes before and behind the other tokens, many out of reach.

    They are what the definition gives, and encode like the ranks unless a token is said to differ.
    """
    rng = random.Random(first)
    alike = differing = out_of_reach = 0
    for _ in range(400):
        ranks = {bytes([byte]): first + byte for byte in range(97, 101)}
        for k in range(rng.randint(2, 9)):
            ranks.setdefault(bytes(rng.choices(b"aaabc", k=rng.randint(2, 4))), 300 + k)
        merges = recover_merges(ranks)
        assert list(merges.items()) == list(recover_slowly(ranks).items())
        out_of_reach += len(ranks) - 4 - len(merges)
        words = [bytes(rng.choices(b"aaabc", k=10)) for _ in range(20)]
        same = [
            encode(ranks, word, {}) == encode(ranks, word, merges or {(0, 0): 0}) for word in words
        ]
        if differing_token(ranks, merges) is None:
            assert all(same)
            alike += 1
        else:
            differing += not all(same)
    assert min(alike, differing, out_of_reach) > 50
