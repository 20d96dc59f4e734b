"""Measure a trained model: `python -m gpt2.evaluate --run runs/gpt2/... --data wikitext-2`.

Two kinds of measures. Bits per byte of any text says how well the model predicts it, whatever the
tokenizer. Tasks ask questions: which of four endings is the likeliest (HellaSwag), which word comes
last (LAMBADA).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import rich.console
import torch
from rich.progress import track

from gpt2.data import read_part
from gpt2.load import Tokenizer, choose_run, load, start_token
from gpt2.model import GPT, IGNORED
from shared import cli, files, parallel
from shared.checkpoint import open_checkpoint
from shared.datasets import Dataset, resolve
from shared.errors import DataError, UsageError

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which model to measure, and on what."""

    run: Path | None = None
    """Folder of a training run (its best checkpoint) or of one checkpoint in it; the run started
    last if neither --run nor --model is given."""
    model: str | None = None
    """Instead of --run: a folder or hub name in Hugging Face's format."""
    data: str | None = None
    """A data set's name or a text file, for bits per byte; with --task, another set of its kind
    (hellaswag-full)."""
    part: Literal["all", "train", "validation", "test"] | None = None
    """Which part of the text: the official one, or as gpt2.train cuts it. If not given, validation
    for the text the run was trained on, test for a data set that has one, else all."""
    task: Literal["text", "hellaswag", "lambada"] = "text"
    """`text` for bits per byte, or a task."""
    stride: int | None = None
    """Tokens scored per window; each sees at least block_size - stride tokens before it. Smaller
    is slower and kinder. Half of block_size if not given."""
    batch_size: int = 8
    """Windows per forward pass; they change nothing but the speed."""
    limit: int | None = None
    """Questions of a task to ask, from the first; all if not given."""
    out: Path | None = None
    """JSON file for the result; <run>/evaluate-<what>.json if not given."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    threads: int = 0
    """CPU threads; 0 takes one for a small model, else all usable cores."""

    def __post_init__(self) -> None:
        for name in ("stride", "batch_size", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.task == "text" and self.data is None:
            raise ValueError("name a text with --data, or a --task (hellaswag, lambada)")


# ---- text


@dataclasses.dataclass(frozen=True)
class Window:
    """Read tokens begin..end-1; score the predictions made at scored..end-1."""

    begin: int
    end: int
    scored: int


def windows(n: int, block_size: int, stride: int) -> Iterator[Window]:
    """Cut n predictions into windows of at most block_size that score each exactly once.

    After the first, each scores `stride` more (the last the rest) with a full context:
    windows(6, 4, 2) -> (0, 4, 0), (2, 6, 4). Raises ValueError unless 1 <= stride <= block_size.
    """
    if not 1 <= stride <= block_size:
        raise ValueError(f"stride={stride} must be from 1 to block_size={block_size}")
    end = min(block_size, n)
    yield Window(0, end, 0)
    while end < n:
        scored, end = end, min(end + stride, n)
        yield Window(end - block_size, end, scored)


@torch.no_grad()
def text_nats(
    model: GPT, ids: Sequence[int], *, stride: int | None = None, batch_size: int = 8
) -> float:
    """Sum -log p(token | the tokens before it in its window) over ids[1:], in nats.

    ids[0] is only read. Raises DataError with fewer than two ids.
    """
    if len(ids) < 2:
        raise DataError("a text of no tokens has no bits per byte")
    block_size = model.config.block_size
    all_ids = torch.tensor(ids, device=model.wte.weight.device)
    cut = list(windows(len(ids) - 1, block_size, stride or max(1, block_size // 2)))
    total = 0.0
    for batch in _progress([cut[i : i + batch_size] for i in range(0, len(cut), batch_size)]):
        idx = torch.stack([all_ids[w.begin : w.end] for w in batch])  # all of one length, but for
        targets = torch.stack([all_ids[w.begin + 1 : w.end + 1] for w in batch])  # a lone first one
        for row, w in zip(targets, batch, strict=True):
            row[: w.scored - w.begin] = IGNORED
        total += float(model(idx, targets)) * sum(w.end - w.scored for w in batch)
    return total


def evaluate_text(
    model: GPT, tokenizer: Tokenizer, text: str, *, stride: int | None = None, batch_size: int = 8
) -> dict[str, float]:
    """Return bits per byte, nats and perplexity per token, and the counts they are over.

    Every token of the text counts: a start token before it gives the first one a context.
    """
    ids = tokenizer.encode_ordinary(text)
    nats = text_nats(model, [start_token(tokenizer), *ids], stride=stride, batch_size=batch_size)
    size = len(text.encode())
    return {
        "bits_per_byte": nats / math.log(2) / size,
        "loss": nats / len(ids),
        "perplexity": math.exp(min(nats / len(ids), 700.0)),
        "tokens": len(ids),
        "bytes": size,
    }


# ---- tasks


@torch.no_grad()
def score(
    model: GPT, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[float, bool]]:
    """Score continuations: for each (context ids, continuation ids) its log-probability in nats.

    The second value says whether greedy decoding would have given it. Of what is too long, the
    last block_size + 1 tokens are read, so that of a continuation longer than block_size only its
    last block_size tokens count. Raises DataError for an empty context or continuation.
    """
    device, block_size = model.wte.weight.device, model.config.block_size
    rows = []
    for context, continuation in pairs:
        if not context or not continuation:
            raise DataError(
                f"{len(context)} tokens of context and {len(continuation)} to score: both must"
                " have one at least"
            )
        rows.append([*context, *continuation][-(block_size + 1) :])
    longest = max(map(len, rows))
    # Padding on the right is never seen: attention only looks back.
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    features = model.features(padded[:, :-1])  # (B, T, C)
    scores = []
    for row, feature, (_, continuation) in zip(rows, features, pairs, strict=True):
        target = torch.tensor(continuation[-block_size:], device=device)  # (n,)
        logits = model.head(feature[len(row) - 1 - len(target) : len(row) - 1])  # (n, V)
        picked = logits.float().log_softmax(-1).gather(-1, target[:, None])
        scores.append((float(picked.double().sum()), bool((logits.argmax(-1) == target).all())))
    return scores


def evaluate_hellaswag(
    model: GPT, tokenizer: Tokenizer, rows: Iterable[dict[str, Any]]
) -> dict[str, float]:
    """Choose among four endings (Zellers et al., 2019), as lm-evaluation-harness does.

    `acc` takes the likeliest ending; `acc_norm` divides its log-probability by its characters
    first, as a long ending is less likely than a short one whatever it says.
    """
    right = right_norm = asked = 0
    for row in _progress(list(rows)):
        context, endings, label = hellaswag_question(row)
        ids = tokenizer.encode_ordinary(context)
        pairs = [(ids, tokenizer.encode_ordinary(" " + ending)) for ending in endings]
        nats = [value for value, _ in score(model, pairs)]
        norm = [value / len(ending) for value, ending in zip(nats, endings, strict=True)]
        right += max(range(len(nats)), key=nats.__getitem__) == label
        right_norm += max(range(len(norm)), key=norm.__getitem__) == label
        asked += 1
    return {"acc": _share(right, asked), "acc_norm": _share(right_norm, asked), "questions": asked}


def hellaswag_question(row: dict[str, Any]) -> tuple[str, list[str], int]:
    """Return context, endings and the right ending's number of a row of HellaSwag.

    Raises DataError for a row without these.
    """
    try:
        context = row["ctx"]
        if "ctx_a" in row:  # the last sentence begins: harness and GPT-2 want a capital there
            context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
        context = _clean(f"{row['activity_label']}: {context}")
        return context, [_clean(ending) for ending in row["endings"]], int(row["label"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"no row of HellaSwag: {str(row)[:80]}") from error


def _clean(text: str) -> str:
    """Take WikiHow's marks out: `"[header] Cut it [title] Now fold" -> "Cut it. Now fold"`."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()


def evaluate_lambada(
    model: GPT, tokenizer: Tokenizer, rows: Iterable[dict[str, Any]]
) -> dict[str, float]:
    """Guess the last word of passages (Paperno et al., 2016).

    `acc` is how often greedy decoding gives all tokens of the word; `perplexity` is per word.
    """
    right = asked = 0
    nats = 0.0
    for row in _progress(list(rows)):
        context, _, word = str(row.get("text", "")).rstrip().rpartition(" ")
        if not context:
            raise DataError(f"no passage of LAMBADA: {str(row)[:80]}")
        pair = tokenizer.encode_ordinary(context), tokenizer.encode_ordinary(" " + word)
        [(value, greedy)] = score(model, [pair])
        nats -= value
        right += greedy
        asked += 1
    perplexity = math.exp(min(nats / max(asked, 1), 700.0))
    return {"acc": _share(right, asked), "perplexity": perplexity, "questions": asked}


TASKS: dict[str, Callable[[GPT, Tokenizer, Iterable[dict[str, Any]]], dict[str, float]]] = {
    "hellaswag": evaluate_hellaswag,
    "lambada": evaluate_lambada,
}


def read_rows(dataset: Dataset, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a task's JSON lines. Raises DataError naming a line that is none."""
    found = 0
    for member in dataset.members:
        with member.open() as stream:
            for number, line in enumerate(stream, 1):
                if found == limit:
                    return
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{member.label}, line {number}: not JSON") from error
                found += 1
                yield row


def _share(count: int, total: int) -> float:
    if not total:
        raise DataError("no questions to ask")
    return count / total


def _progress(items: Sequence[Item]) -> Iterable[Item]:
    """Show a bar on stderr while going through items, if that is a terminal."""
    console = rich.console.Console(stderr=True)
    return track(items, "evaluating", console=console, disable=not console.is_terminal)


def choose_text(dataset: Dataset, part: str | None, trained: str | None) -> tuple[str, str]:
    """Return the part of a text to measure, and its name: see `EvaluateConfig.part`.

    `trained` is the digest of the text that the model saw in training. Raises UsageError for a test
    part that the data set does not have.
    """
    if part is None:
        part = "validation" if dataset.sha256 == trained else "all"
        part = "test" if part == "all" and "test" in dataset.splits else part
    if part == "all":
        return part, dataset.text()
    if part == "test":
        return part, dataset.part("test").text()
    return part, "".join(text for _, text in read_part(dataset, part))


def trained_on(run: Path | None) -> str | None:
    """Return the digest of the text that a run was trained on; None for a model from elsewhere."""
    if run is None:
        return None
    digest: str = open_checkpoint(run, best=True).json()["corpus"]["sha256"]
    return digest


def main(config: EvaluateConfig) -> None:
    """Measure a trained model on a text or a task."""
    run = choose_run(config.run, config.model)
    model, tokenizer = load(run, config.model, parallel.pick_device(config.device), config.threads)
    dataset = resolve(config.data or config.task)
    name, part = dataset.name, "all"
    if config.task == "text":
        stride, block_size = config.stride, model.config.block_size
        if stride is not None and stride > block_size:
            raise UsageError(f"stride={stride} must be at most the model's block_size={block_size}")
        part, text = choose_text(dataset, config.part, trained_on(run))
        name = f"{dataset.name} ({part})"
        values = evaluate_text(model, tokenizer, text, stride=stride, batch_size=config.batch_size)
    else:
        values = TASKS[config.task](model, tokenizer, read_rows(dataset, config.limit))
    result = {
        "task": config.task,
        "model": str(run or config.model),
        "data": {"name": dataset.name, "sha256": dataset.sha256, "part": part},
        **values,
    }
    shown = {name: f"{v:.4f}" if isinstance(v, float) else f"{v:,}" for name, v in values.items()}
    cli.print_settings(rich.console.Console(soft_wrap=True), f"{config.task} on {name}", shown)
    what = config.task if config.task != "text" else Path(dataset.name).stem
    out = config.out or (run / f"evaluate-{what}.json" if run else None)
    if out is not None:
        files.write_json(out, result)


if __name__ == "__main__":
    cli.run(main)
