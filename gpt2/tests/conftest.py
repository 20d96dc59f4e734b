"""Fixtures of the gpt2 tests: one thread, a seed, and models small enough to reason about."""

from collections.abc import Callable, Iterator

import pytest
import torch

from gpt2.model import GPT, GPTConfig
from minbpe import RegexTokenizer


@pytest.fixture(autouse=True)
def one_thread_and_a_seed() -> Iterator[None]:
    """Make tests independent of the number of cores and of which ran before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_model() -> Callable[..., GPT]:
    """Make a tiny GPT in fp64 whose weights are large enough for attention to matter."""

    def make(**changes: object) -> GPT:
        sizes = {"vocab_size": 61, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
        model = GPT(GPTConfig(**(sizes | changes))).double()  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        return model.eval()

    return make


@pytest.fixture
def tokenizer() -> RegexTokenizer:
    """Make a tokenizer of the 256 bytes, one merge and <|endoftext|>, so é takes two tokens."""
    made = RegexTokenizer()
    made.train("the the the", 257)
    made.register_special_tokens({"<|endoftext|>": 257})
    return made
