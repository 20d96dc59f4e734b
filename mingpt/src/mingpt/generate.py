"""Continue a text: `python -m mingpt.generate --run runs/mingpt/... --prompt "ROMEO:"`.

A character at a time: the model scores every next character, one is drawn, and it is read in turn.
A transformer keeps the keys and values of what it has read, so that a new character costs one
position's work; a model without such a memory reads the whole window again.

The window is finite. When it is full, its later half is read again from position 0 and the rest is
forgotten: on average two positions a character, however long the text. Dropping one character at
a time would move all others, and so void what was kept each time. Of a prompt longer than the
window the end is read. An empty prompt begins like a line: a line break is read before it.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mingpt.data import Vocabulary, evaluation_mode
from mingpt.load import choose_run, load_run
from mingpt.model import LanguageModel
from shared import cli
from shared.sampling import check_sampling, sample

NEW_LINE = "\n"


@runtime_checkable
class Remembering(Protocol):
    """A model that need not read again what it has read."""

    def new_cache(self) -> Any:
        """Return the memory of having read nothing."""

    def next_logits(self, idx: Tensor, cache: Any) -> Tensor:
        """Read idx (B, T) after what is in `cache`, keep it, and return logits (B, V)."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to continue, with which model, and how boldly."""

    run: Path | None = None
    """Folder of a training run (its best checkpoint) or of one checkpoint in it; the run started
    last if not given."""
    prompt: str = ""
    """Text to continue; of one longer than the model's context the end is read. Empty: a new text,
    that begins after a line break."""
    max_new_tokens: int = 500
    """Characters to add."""
    temperature: float = 0.8
    """Divides the scores: below 1 is safer, above 1 bolder; 0 takes the likeliest character."""
    top_k: int | None = None
    """Draw among the k likeliest characters."""
    top_p: float = 1.0
    """Draw among the likeliest characters that together have this probability (0 to 1)."""
    number: int = 1
    """Texts to write."""
    seed: int = 0
    """Same seed, same texts."""

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p)
        for name in ("max_new_tokens", "number"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed} must be from 0 to 2**64 - 1")


def generate(
    model: LanguageModel,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    cached: bool = True,
) -> Iterator[Tensor]:
    """Continue ids (B, T) and yield the next ids (B,), `max_new_tokens` times.

    Of more than block_size ids the last block_size are read. Without `cached` the whole window is
    read for every character, to the same effect. When the window is full and its later half is
    read again, a hybrid's n-grams too begin at that half.

    Raises ValueError for an empty prompt or an id that the model does not have, and what `sample`
    raises.
    """
    check_sampling(temperature, top_k, top_p)
    if idx.size(1) == 0:
        raise ValueError("idx has no ids to continue; start with a line break")
    if not 0 <= int(idx.min()) <= int(idx.max()) < model.vocab_size:
        raise ValueError(
            f"ids {int(idx.min())} to {int(idx.max())} do not fit vocab_size={model.vocab_size}"
        )
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    return _decode(model, idx, max_new_tokens, cached, settings)


@torch.no_grad()
def _decode(
    model: LanguageModel, idx: Tensor, max_new_tokens: int, cached: bool, settings: dict[str, Any]
) -> Iterator[Tensor]:
    block_size, cache = model.block_size, None
    window = unread = idx[:, -block_size:]
    with evaluation_mode(model):
        for _ in range(max_new_tokens):
            if isinstance(model, Remembering) and cached:
                cache = model.new_cache() if cache is None else cache
                logits = model.next_logits(unread, cache)  # (B, V)
            else:
                logits = model(window)[:, -1]
            drawn = sample(logits, **settings)  # (B,)
            yield drawn
            if window.size(1) == block_size:
                window, cache = window[:, block_size - block_size // 2 :], None
            window = torch.cat([window, drawn[:, None]], dim=1)
            unread = window if cache is None else drawn[:, None]


def encode_prompt(vocabulary: Vocabulary, prompt: str) -> Tensor:
    """Return the ids to start from: (1, T), those of a prompt or, where it is empty, a line break.

    Of a text that was one line, its character of the lowest code point. Raises DataError listing
    the characters that the vocabulary lacks.
    """
    start = NEW_LINE if NEW_LINE in vocabulary.characters else vocabulary.characters[0]
    return torch.from_numpy(vocabulary.encode(prompt or start))[None]


def stream_text(
    model: LanguageModel, vocabulary: Vocabulary, prompt: str, max_new_tokens: int, **settings: Any
) -> Iterator[str]:
    """Continue a prompt and yield the new characters; the settings are those of `generate`.

    Raises what `encode_prompt` and `generate` raise.
    """
    idx = encode_prompt(vocabulary, prompt)
    for drawn in generate(model, idx, max_new_tokens, **settings):
        yield vocabulary.decode(drawn.tolist())


def sample_text(
    model: LanguageModel, vocabulary: Vocabulary, prompt: str, max_new_tokens: int, seed: int
) -> str:
    """Return the prompt and its continuation, drawn as the command line does by default."""
    settings = GenerateConfig(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    temperature = settings.temperature
    pieces = stream_text(
        model, vocabulary, prompt, max_new_tokens, temperature=temperature, generator=generator
    )
    return prompt + "".join(pieces)


def main(config: GenerateConfig) -> None:
    """Continue a text with a trained model, printing it as it comes."""
    torch.set_num_threads(1)  # the models are small: threads would mostly wait for each other
    loaded = load_run(choose_run(config.run))
    loaded.vocabulary.encode(config.prompt)  # before anything is printed
    if (length := len(config.prompt)) > (room := loaded.model.block_size):
        print(f"the prompt has {length:,} characters; its last {room} are read", file=sys.stderr)
    generator, texts = torch.Generator().manual_seed(config.seed), config.number
    if config.temperature == 0.0 and texts > 1:
        print("temperature 0: all texts are the same, here is one", file=sys.stderr)
        texts = 1
    for number in range(texts):
        if texts > 1:
            print(f"--- {number + 1} of {texts}")
        pieces = stream_text(
            loaded.model,
            loaded.vocabulary,
            config.prompt,
            config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            generator=generator,
        )
        first = next(pieces)  # broken weights end it here, before anything is printed
        print(config.prompt, first, sep="", end="", flush=True)
        for text in pieces:
            print(text, end="", flush=True)
        print()


if __name__ == "__main__":
    cli.run(main)
