"""Continue a text: `python -m gpt2.generate --run runs/gpt2/... --prompt "ROMEO:"`.

A token at a time: the model scores every next token, one is drawn, and it becomes input. The keys
and values of earlier positions stay in a cache, so a new token costs one position's work.

The context is finite. When it is full, the later half of it is read again from position 0 and the
rest forgotten: on average that costs two positions a token, however long the text, where dropping
one token at a time would move all others and so void the whole cache each time.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.data import END_OF_TEXT
from gpt2.load import Tokenizer, choose_run, load, start_token
from gpt2.model import GPT, KVCache
from shared import cli, parallel
from shared.errors import NumericalError
from shared.sampling import check_sampling

# The copies of `long_runs` take as long as about 20 tokens save.
WORTH_A_COPY = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to continue, with which model, and how boldly."""

    run: Path | None = None
    """Folder of a training run (its best checkpoint) or of one checkpoint in it; the run started
    last if neither --run nor --model is given."""
    model: str | None = None
    """Instead of --run: a folder or hub name in Hugging Face's format."""
    prompt: str = ""
    """Text to continue; of a prompt longer than the context its end is read. Empty: a new text,
    from <|endoftext|> or, where the tokenizer has none, a line break."""
    max_new_tokens: int = 256
    """Tokens to add at most; the text may end before, at <|endoftext|>."""
    temperature: float = 0.8
    """Divides the logits: below 1 is safer, above 1 bolder; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw among the k likeliest tokens."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability (0 to 1)."""
    number: int = 1
    """Texts to write."""
    seed: int = 0
    """Same seed, same texts."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    threads: int = 0
    """CPU threads; 0 takes one for a small model, else all usable cores."""

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p)
        for name in ("max_new_tokens", "number"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token per row: logits (B, V) to (B,).

    Temperature first, then the k likeliest, then of these the fewest whose probabilities add up to
    top_p (Holtzman et al., 2020, sec. 3.1). Raises NumericalError for logits that are not finite.
    """
    if not logits.isfinite().all():
        raise NumericalError("the model gave scores that are not finite; its weights are broken")
    if temperature == 0.0:
        return logits.argmax(-1)
    ids = None
    if top_k is not None or top_p < 1.0:
        k = logits.size(-1) if top_k is None else min(top_k, logits.size(-1))
        logits, ids = logits.topk(k)  # (B, k), the likeliest first
    # The largest logit is 0 from here, so that a tiny temperature cannot overflow.
    logits = logits.float() - logits.float().amax(-1, keepdim=True)
    probs = (logits / temperature).softmax(-1)
    if top_p < 1.0:
        before = probs.cumsum(-1) - probs  # of all likelier tokens; 0 for the first, which stays
        probs = probs.masked_fill(before >= top_p, 0.0)
    drawn = torch.multinomial(probs, 1, generator=generator)  # (B, 1), needs no sum of 1
    return (drawn if ids is None else ids.gather(-1, drawn)).squeeze(-1)


def generate(
    model: GPT,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continue token ids (B, T) and yield the next tokens (B,), `max_new_tokens` times.

    Of more than block_size ids the last block_size are read. Raises ValueError for an empty prompt
    or an id that the model does not have.
    """
    check_sampling(temperature, top_k, top_p)
    if idx.size(1) == 0:
        raise ValueError("idx has no tokens to continue; start with <|endoftext|>")
    if not 0 <= int(idx.min()) <= int(idx.max()) < model.config.vocab_size:
        raise ValueError(
            f"ids {int(idx.min())} to {int(idx.max())} do not fit vocab_size="
            f"{model.config.vocab_size}; use the tokenizer the model was trained with"
        )
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    return _decode(model, idx, max_new_tokens, settings)


@contextlib.contextmanager
def long_runs(model: GPT) -> Iterator[None]:
    """Lay the weights out, within it, so that a product with one row of input reads long runs.

    Such a product does little but read its matrix, and a CPU reads 1.7 times as fast along the
    longer side (AMD EPYC, one thread: 16 and 9 GB/s for 1536 x 384). Linear weights (out, in) lie
    along `in`; those with out > in, the tied head's too, are stored by columns here, their shape
    and values the same. Costs a copy of them meanwhile. On other devices nothing happens.
    """
    wide = [
        (p, p.data)
        for module in model.modules()
        if isinstance(module, nn.Linear) or module is model.wte
        for p in module.parameters(recurse=False)
        if p.device.type == "cpu" and p.ndim == 2 and p.size(0) > p.size(1) and p.is_contiguous()
    ]
    for parameter, weight in wide:
        parameter.data = weight.T.contiguous().T
    versions = [parameter._version for parameter, _ in wide]
    try:
        yield
    finally:
        for (parameter, weight), version in zip(wide, versions, strict=True):
            if parameter._version != version:  # someone trained it between two tokens
                weight.copy_(parameter.data)
            parameter.data = weight


@torch.no_grad()
def _decode(
    model: GPT, idx: Tensor, max_new_tokens: int, settings: dict[str, Any]
) -> Iterator[Tensor]:
    block_size = model.config.block_size
    cache = KVCache(model.config, idx.size(0), idx.device, model.wte.weight.dtype)
    recent = unread = idx[:, -block_size:]
    was_training = model.training
    model.eval()
    try:
        with long_runs(model) if max_new_tokens >= WORTH_A_COPY else contextlib.nullcontext():
            for _ in range(max_new_tokens):
                if cache.length == block_size:
                    cache.length = 0
                    unread = recent[:, -max(1, block_size // 2) :]
                # Inference mode spares autograd's bookkeeping, but its tensors can't be trained
                # on: the token is drawn outside.
                with torch.inference_mode():
                    logits = model.next_logits(unread, cache)
                token = sample(logits, **settings)  # (B,)
                yield token
                unread = token[:, None]
                recent = torch.cat([recent, unread], dim=1)[:, -block_size:]
    finally:
        model.train(was_training)


def stream_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, **settings: Any
) -> Iterator[str]:
    """Continue a prompt and yield the new text piece by piece, as far as its characters are whole.

    A character of several bytes may take several tokens; bytes that are no UTF-8 become U+FFFD.
    Ends at <|endoftext|>. The settings are those of `generate`, whose errors it raises.
    """
    ids = tokenizer.encode_ordinary(prompt) or [start_token(tokenizer)]
    idx = torch.tensor([ids], device=model.wte.weight.device)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    end = tokenizer.special_tokens.get(END_OF_TEXT)
    for token in generate(model, idx, max_new_tokens, **settings):
        if (new := int(token)) == end:
            break
        if text := decoder.decode(tokenizer.decode_bytes([new])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def sample_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, seed: int
) -> str:
    """Return the prompt and its continuation, drawn as the command line does by default."""
    settings = GenerateConfig(seed=seed)
    generator = torch.Generator(model.wte.weight.device).manual_seed(seed)
    pieces = stream_text(
        model,
        tokenizer,
        prompt,
        max_new_tokens,
        temperature=settings.temperature,
        generator=generator,
    )
    return prompt + "".join(pieces)


def main(config: GenerateConfig) -> None:
    """Continue a text with a trained model, printing it as it comes."""
    device = parallel.pick_device(config.device)
    run = choose_run(config.run, config.model)
    model, tokenizer = load(run, config.model, device, config.threads)
    generator = torch.Generator(device).manual_seed(config.seed)
    for number in range(config.number):
        if config.number > 1:
            print(f"--- {number + 1} of {config.number}")
        pieces = stream_text(
            model,
            tokenizer,
            config.prompt,
            config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            generator=generator,
        )
        print(config.prompt, end="", flush=True)
        for text in pieces:
            print(text, end="", flush=True)
        print()


if __name__ == "__main__":
    cli.run(main)
