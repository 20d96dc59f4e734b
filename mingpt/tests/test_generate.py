"""Continuing a text: what is read, what is drawn, and that a cache changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mingpt.data import Vocabulary
from mingpt.generate import encode_prompt, generate, sample_text, stream_text
from mingpt.hybrid import Hybrid
from mingpt.load import load_run
from mingpt.model import LanguageModel
from mingpt.recipes import build
from shared.errors import DataError

Command = Callable[..., Any]


class Counting(nn.Module):
    """Says that the next id is one more than the last one; notes what it has read."""

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, block_size
        self.read: list[list[int]] = []

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits; the loss is not asked for here."""
        assert targets is None
        if idx.size(1) > self.block_size:
            raise ValueError("too long")
        self.read.append(idx[0].tolist())
        return 9.0 * torch.eye(self.vocab_size)[(idx + 1) % self.vocab_size]

    def flops_per_character(self) -> float:
        """Return what counting costs."""
        return 0.0


def continued(model: LanguageModel, idx: Tensor, number: int, **settings: Any) -> list[list[int]]:
    """Return what each row was continued with."""
    drawn = list(generate(model, idx, number, **settings))
    return torch.stack(drawn, dim=1).tolist()


def made(name: str) -> LanguageModel:
    """Return a model with random weights, also where it starts with zeros."""
    model = build(name, 11, n_layer=2, n_head=2, n_embd=16, block_size=8)
    if isinstance(model, Hybrid):
        model.fit(torch.randint(11, (300,)).numpy())
    assert isinstance(model, nn.Module)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture
def model() -> LanguageModel:
    return made("default")


@pytest.mark.parametrize("length", [1, 7, 8, 20])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["default", "hybrid"])
def test_a_cache_changes_nothing(name: str, length: int, temperature: float) -> None:
    """The same ids, for any prompt and past the end of the window several times."""
    model = made(name)
    idx = torch.randint(11, (3, length))
    found = [
        continued(
            model,
            idx,
            30,
            temperature=temperature,
            generator=torch.Generator().manual_seed(0),
            cached=cached,
        )
        for cached in (True, False)
    ]
    assert found[0] == found[1]
    assert len(set(map(tuple, found[0]))) == 3


def test_a_full_window_goes_on_from_its_later_half() -> None:
    """Each character is read after all that the window has; then half of it and the new one."""
    counting = Counting(100, 4)
    found = continued(counting, torch.tensor([[7, 8, 9]]), 6, temperature=0.0)
    assert found == [[10, 11, 12, 13, 14, 15]]
    assert counting.read == [
        [7, 8, 9],
        [7, 8, 9, 10],
        [9, 10, 11],
        [9, 10, 11, 12],
        [11, 12, 13],
        [11, 12, 13, 14],
    ]


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_a_tiny_window_works_too(block_size: int) -> None:
    """Down to a single character."""
    found = continued(Counting(100, block_size), torch.tensor([[5, 6]]), 5, temperature=0.0)
    assert found == [[7, 8, 9, 10, 11]]


def test_of_a_long_prompt_the_end_is_read() -> None:
    """The last block_size ids."""
    counting = Counting(100, 4)
    assert continued(counting, torch.arange(9)[None], 1, temperature=0.0) == [[9]]
    assert counting.read == [[5, 6, 7, 8]]


def test_prompts_that_no_model_can_read_are_refused() -> None:
    """None at all, and ids that it does not have; at the call, before any is drawn."""
    with pytest.raises(ValueError, match="no ids to continue; start with a line break"):
        generate(Counting(5, 4), torch.zeros(1, 0, dtype=torch.int64), 3)
    for bad in (-1, 5):
        with pytest.raises(ValueError, match="do not fit vocab_size=5"):
            generate(Counting(5, 4), torch.tensor([[0, bad]]), 3)
    with pytest.raises(ValueError, match="top_k=0"):
        generate(Counting(5, 4), torch.tensor([[0]]), 3, top_k=0)


def test_the_model_is_left_as_it_was(model: LanguageModel) -> None:
    """Evaluated without dropout, and back in training when the reader stops early."""
    assert isinstance(model, nn.Module)
    pieces = generate(model.train(), torch.tensor([[0]]), 30)
    next(pieces)
    assert not model.training
    pieces.close()  # type: ignore[attr-defined]
    assert model.training


def test_an_empty_prompt_begins_after_a_line_break() -> None:
    """Where the vocabulary has none, after its first character."""
    assert encode_prompt(Vocabulary("\n ab"), "").tolist() == [[0]]
    assert encode_prompt(Vocabulary("ab"), "").tolist() == [[0]]
    assert encode_prompt(Vocabulary("\t\nab"), "").tolist() == [[1]]
    assert encode_prompt(Vocabulary("\n ab"), "ba").tolist() == [[3, 2]]
    with pytest.raises(DataError, match="never seen: 'xy'"):
        encode_prompt(Vocabulary("ab"), "yax")


def test_text_comes_a_character_at_a_time() -> None:
    """As the vocabulary has it."""
    pieces = stream_text(Counting(4, 3), Vocabulary("abcd"), "b", 5, temperature=0.0)
    assert list(pieces) == ["c", "d", "a", "b", "c"]


# -- the command ---------------------------------------------------------------------------------


def test_the_command_prints_the_prompt_and_its_continuation(
    command: Command, trained: tuple[Path, Any]
) -> None:
    """What `sample_text` returns, and nothing else; other seeds and settings, other texts."""
    words = ("generate", "--run", trained[0], "--prompt", "Shall", "--max-new-tokens", 40)
    ended = command(*words)
    assert (ended.code, ended.error) == (0, "")
    loaded = load_run(trained[0])
    expected = sample_text(loaded.model, loaded.vocabulary, "Shall", 40, seed=0)
    assert ended.out == expected + "\n"
    assert len(expected) == 45
    changes = (("--seed", 1), ("--temperature", 5), ("--top-k", 1), ("--top-p", 0.1))
    others = [command(*words, *change).out for change in changes]
    assert len({ended.out, *others[:3]}) == 4
    greedy = command(*words, "--temperature", 0).out
    assert others[2] == greedy


def test_several_texts_are_numbered(command: Command, trained: tuple[Path, Any]) -> None:
    """Each another one; at temperature 0 there is but one to show."""
    words = ("generate", "--run", trained[0], "--max-new-tokens", 20, "--number", 3)
    ended = command(*words)
    assert ended.code == 0
    assert ended.out.startswith("--- 1 of 3\n")
    texts = ended.out.partition("--- 1 of 3\n")[2].split("\n--- ")
    assert len({text.removeprefix("2 of 3\n").removeprefix("3 of 3\n") for text in texts}) == 3
    ended = command(*words, "--temperature", 0)
    assert ended.error == "temperature 0: all texts are the same, here is one\n"
    assert "---" not in ended.out


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--temperature", -1, "temperature=-1.0 must be 0 or more"),
        ("--top-p", 0, "top_p=0.0 must be above 0"),
        ("--max-new-tokens", 0, "max_new_tokens=0 must be at least 1"),
        ("--number", 0, "number=0 must be at least 1"),
        ("--seed", -1, "seed=-1 must be from 0"),
        ("--promt", "x", "unknown flag --promt; did you mean --prompt?"),
    ],
)
def test_flags_that_cannot_work_end_with_2(
    flag: str, value: object, said: str, command: Command
) -> None:
    """In one line that names the value and the rule."""
    ended = command("generate", flag, value)
    assert (ended.code, ended.out, ended.error.count("\n")) == (2, "", 1)
    assert said in ended.said
