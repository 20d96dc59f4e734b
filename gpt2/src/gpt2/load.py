"""Find a trained model with its tokenizer: what `generate` and `evaluate` start with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from gpt2 import pretrained
from gpt2.data import END_OF_TEXT, TOKENIZER
from gpt2.model import GPT, GPTConfig
from minbpe import RegexTokenizer
from shared import parallel
from shared.checkpoint import open_checkpoint
from shared.errors import ArtefactError, UsageError
from shared.runs import newest_folder

RUNS = Path("runs/gpt2")


class Tokenizer(Protocol):
    """What generation and evaluation need of a tokenizer."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of tokens that text never turns into."""

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens in it are text."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ids, which may begin or end inside a character."""


def start_token(tokenizer: Tokenizer) -> int:
    """Return what stands before a text: <|endoftext|>, or a line break where there is none."""
    special = tokenizer.special_tokens.get(END_OF_TEXT)
    return tokenizer.encode_ordinary("\n")[-1] if special is None else special


def choose_run(run: Path | None, model: str | None) -> Path | None:
    """Return the run that `--run` and `--model` mean: by default the run started last.

    None for a model from elsewhere. Raises UsageError for both flags, or where there is no run.
    """
    if run is not None and model is not None:
        raise UsageError("name one of --run (a folder of ours) and --model (Hugging Face's format)")
    return newest_folder(RUNS) if run is None and model is None else run


def load(
    run: Path | None, model: str | None, device: torch.device, threads: int = 0
) -> tuple[GPT, Tokenizer]:
    """Load a run of ours, or else `model`, to compute with it on `device`.

    Sets the CPU threads: 0 takes what suits the model's size.
    """
    gpt, tokenizer = load_run(run) if run is not None else load_pretrained(str(model))
    torch.set_num_threads(threads or parallel.default_threads(gpt.num_parameters()))
    return gpt.to(device), tokenizer


def load_run(path: Path) -> tuple[GPT, Tokenizer]:
    """Load the best checkpoint of a run folder (else the newest), or one step's folder.

    The model is in evaluation mode. Raises UsageError when there is none, ArtefactError when it
    is damaged or tokenizer and model do not fit.
    """
    checkpoint = open_checkpoint(path, best=True)
    values: dict[str, Any] = checkpoint.json().get("model", {})
    try:
        config = GPTConfig(**values)
    except (TypeError, ValueError) as error:
        raise ArtefactError(f"{checkpoint.path}: not the model of a GPT ({error})") from error
    model = pretrained.build(config, checkpoint.tensors(), str(checkpoint.path))
    tokenizer = _tokenizer(checkpoint.path.parent.parent, config)
    made_with = checkpoint.json().get("corpus", {}).get("tokenizer_sha256")
    if tokenizer.digest() != made_with:
        raise ArtefactError(
            f"{checkpoint.path.parent.parent / TOKENIZER} is not the tokenizer the model was "
            "trained with"
        )
    return model.eval(), tokenizer


def load_pretrained(source: str) -> tuple[GPT, Tokenizer]:
    """Load a folder in Hugging Face's format, with our `tokenizer.model` beside it."""
    _check_there(Path(source))  # before anything is downloaded
    model = GPT.from_pretrained(source)
    return model, _tokenizer(Path(source), model.config)


def _check_there(folder: Path) -> None:
    if not (folder / TOKENIZER).is_file():
        raise UsageError(
            f"{folder}: has no {TOKENIZER}; put the one the model was trained with there (the "
            "tokenizer files of published GPT-2s are not read yet)"
        )


def _tokenizer(folder: Path, config: GPTConfig) -> RegexTokenizer:
    path = folder / TOKENIZER
    _check_there(folder)
    tokenizer = RegexTokenizer()
    tokenizer.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ArtefactError(
            f"{path}: has {tokenizer.vocab_size} tokens, the model only {config.vocab_size};"
            " it belongs to another model"
        )
    return tokenizer
