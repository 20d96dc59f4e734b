"""What each head of a trained model looks at: `python -m mingpt.look --run runs/mingpt/...`.

Writes one page, `look.html`, that needs nothing but itself: for each head the map of its attention
weights on a prompt (sec. 3.2.1, the softmax of eq. 1), where any character looks, how surprised
the model was by each character, and what it is worth to have the head at all.

That worth is measured and not read off the map: what a head returns is multiplied by 0, and the
loss of the whole model is taken again, on the prompt and on a stretch of text (Michel et al.,
"Are Sixteen Heads Really Better than One?", 2019). A head may look striking and do nothing.

`look.html`, beside this module, is the page's layout and program; the numbers are all made here.

Shapes: L layers, H heads, T characters of the prompt (queries t, keys s <= t), N targets of the
text, W windows of it, B windows at once.
"""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import html
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from mingpt.data import FloatArray, Windows, cut, evaluation_mode, target_nats
from mingpt.evaluate import choose_part
from mingpt.generate import encode_prompt
from mingpt.gpt import GPT
from mingpt.hybrid import Hybrid
from mingpt.load import Loaded, choose_run, find_data, load_run, read_text, trained_on
from mingpt.model import IGNORED, LanguageModel, count_parameters
from shared import cli
from shared.errors import DataError, UsageError
from shared.files import make_folder, write_file
from shared.sampler import IntArray

TOP = 5  # predictions told of each character
MOST = 512  # characters on a page: the maps grow with the square
OPENING = 64  # characters of the text shown where no prompt is given
RECENT = 4  # characters back that count as recent
BATCHES = 9  # of a text: fewer than what `target_nats` shows a bar of its own for
LEVELS = 65535  # a weight travels as a whole number of two bytes


@dataclass(frozen=True, kw_only=True)
class LookConfig:
    """Which model to look into, and what it reads meanwhile."""

    run: Path | None = None
    """Folder of a training run (its best checkpoint) or of one checkpoint in it; the run started
    last if not given."""
    prompt: str | None = None
    r"""Text to draw the maps of; of one longer than the model's context the end is read. \n is a
    line break where the model knows no backslash. Empty: a line break. If not given, the first
    characters of the text that the heads are measured on."""
    out: Path = Path("look.html")
    """The page to write."""
    data: str = ""
    """What the heads are measured on: a text file or a data set's name. If not given, the
    validation part of what the run was trained on."""
    characters: int = 16384
    """Characters of it to measure on, from its start, in whole windows; fewer if it is shorter."""
    json: bool = False
    """Print JSON for programs, instead of a table."""

    def __post_init__(self) -> None:
        if self.characters < 2:
            raise ValueError(f"characters={self.characters} must be at least 2")
        if self.out.is_dir():
            raise ValueError(
                f"out={self.out} is a folder; name a file, such as {self.out}/look.html"
            )


# ---- looking into a model


def transformer_of(model: LanguageModel) -> GPT:
    """Return the transformer of a model: itself, or the one in a hybrid.

    Raises UsageError for a model without heads.
    """
    found = model.gpt if isinstance(model, Hybrid) else model
    if not isinstance(found, GPT):
        raise UsageError(f"a {type(model).__name__} has no attention heads to look at")
    return found


@contextlib.contextmanager
def watched(
    model: LanguageModel, head_mask: Tensor | None = None, maps: list[Tensor] | None = None
) -> Iterator[None]:
    """Have a model's transformer use `head_mask` and fill `maps` meanwhile (`GPT.features`).

    Whoever calls it: a GPT for itself, or a hybrid, which hands its hints over too. So what is
    measured is the model as it is used, and no forward pass is written a second time here.
    """
    gpt = transformer_of(model)
    features = functools.partial(gpt.features, head_mask=head_mask, maps=maps)
    gpt.features = features  # type: ignore[method-assign]  # hides the class's until deleted
    try:
        yield
    finally:
        del gpt.features


@dataclass(frozen=True)
class Reading:
    """What a model makes of a prompt."""

    maps: Tensor
    """Attention weights (L, H, T, T)."""
    log_probs: Tensor
    """log p of every character after each of the prompt (T, V), in nats."""


@torch.no_grad()
def read(model: LanguageModel, idx: Tensor) -> Reading:
    """Read a prompt (1, T) and note the attention weights; T is at most the block_size."""
    maps: list[Tensor] = []
    with evaluation_mode(model), watched(model, maps=maps):
        logits = model(idx)[0]
    return Reading(torch.cat(maps), logits.double().log_softmax(-1))


def without_each_head(
    model: LanguageModel, texts: dict[str, Windows]
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Measure texts with all heads, and without each.

    Return for each text -log p of its targets (N,), in nats, and the same with head h of layer l
    switched off (L, H, N). Shows a bar on stderr, if that is a terminal.
    """
    config = transformer_of(model).config
    L, H = config.n_layer, config.n_head
    whole = {name: _nats(model, windows) for name, windows in texts.items()}
    lacking = {name: np.empty((L, H, len(nats))) for name, nats in whole.items()}
    console = Console(stderr=True)
    heads = [(layer, head) for layer in range(L) for head in range(H)]
    told = {"console": console, "disable": not console.is_terminal, "transient": True}
    for layer, head in track(heads, "switching off each head", **told):  # type: ignore[arg-type]
        mask = torch.ones(L, H)
        mask[layer, head] = 0.0
        with watched(model, head_mask=mask):
            for name, windows in texts.items():
                lacking[name][layer, head] = _nats(model, windows)
    return {name: (whole[name], lacking[name]) for name in texts}


def _nats(model: LanguageModel, windows: Windows) -> FloatArray:
    return target_nats(model, windows, batch_size=max(64, -(-len(windows) // BATCHES)))


def mean_and_error(nats: FloatArray, window: int) -> tuple[float, float | None]:
    """Return the mean of numbers (N,) and its standard error, None for a single window.

    Characters of one window share their context and are no independent measurements; means of
    windows nearly are, so that the error is that of these. The windows have `window` targets each;
    a shorter one at the end, if any, counts for the mean only.
    """
    means = nats[: len(nats) // window * window].reshape(-1, window).mean(axis=1)  # (W,)
    if len(means) < 2:
        return float(nats.mean()), None
    return float(nats.mean()), float(means.std(ddof=1) / math.sqrt(len(means)))


# ---- what heads do by habit


@dataclass(frozen=True)
class Habits:
    """Where a head looks, on average over the characters of a text but the first of a window."""

    distance: float
    """Characters back."""
    previous: float
    """Share on the character before, 0 to 1."""
    own: float
    """Share on the character itself."""
    first: float
    """Share on the window's first character."""
    recent: float
    """Share on the last `RECENT` characters, and the character itself."""
    entropy: float
    """Of the weights, in nats: 0 for a single character."""
    evenness: float
    """Entropy, as a share of that of looking at all characters alike."""

    def words(self, even_distance: float) -> str:
        """Say what it attends to: what has half of the weight, else how wide and far it looks.

        `even_distance` is how far back it is on average to all characters.
        """
        for share, said in (
            (self.own, "itself"),
            (self.previous, "the character before"),
            (self.first, "the first character"),
            (self.recent, f"the last {RECENT} or so"),
        ):
            if share >= 0.5:
                return said
        if self.evenness >= 0.9:
            return "all alike"
        return "some, far back" if self.distance >= even_distance else "some, near and far"


@torch.no_grad()
def habits(model: LanguageModel, windows: Windows) -> tuple[list[list[Habits]], float]:
    """Measure the habits of each head, [layer][head], and how far back it is to all characters.

    Raises DataError where no window has a second character.
    """
    sums, count, far = torch.zeros(0), 0, 0.0
    with evaluation_mode(model) as module:
        for first in range(0, len(windows), 64):
            indices = np.arange(first, min(first + 64, len(windows)))
            batch: tuple[Tensor, ...] = windows.batch(indices)
            idx, targets, *hints = batch
            maps: list[Tensor] = []
            with watched(model, maps=maps):
                module(idx, None, *hints)
            real = (targets != IGNORED)[:, 1:]  # (B, T - 1)
            found = torch.stack([habits_of(weights) for weights in maps])  # (L, 7, B, H, T - 1)
            part = (found * real[:, None]).sum((2, 4))  # (L, 7, H)
            sums = part if count == 0 else sums + part
            count += int(real.sum())
            far += float((torch.arange(1, idx.size(1)) / 2 * real).sum())
    if count == 0:
        raise DataError("windows of one character have nothing to look back at")
    means = (sums / count).transpose(1, 2).tolist()  # [layer][head][7]
    return [[Habits(*numbers) for numbers in layer] for layer in means], far / count


def habits_of(weights: Tensor) -> Tensor:
    """Return the numbers of `Habits`, in its order, of each query but the first.

    weights (B, H, T, T), of which the result is (7, B, H, T - 1).
    """
    T = weights.size(-1)
    t, s = torch.arange(1, T)[:, None], torch.arange(T)  # (T - 1, 1), (T,)
    w = weights[..., 1:, :]  # (B, H, T - 1, T)
    entropy = -torch.xlogy(w, w).sum(-1)
    shares = [(w * chosen).sum(-1) for chosen in (t - s == 1, t == s, s == 0, t - s <= RECENT)]
    # Keys after the query have weight 0: their distances do not count.
    return torch.stack([(w * (t - s)).sum(-1), *shares, entropy, entropy / torch.log(t[:, 0] + 1)])


# ---- the report


def look(loaded: Loaded, config: LookConfig) -> tuple[dict[str, Any], Tensor]:
    """Look into a trained model; return what is told of it, and the maps (L, H, T, T).

    Says on stderr when the prompt is cut. Raises UsageError for a model without heads and data
    that are not found, DataError for characters that the model has never seen.
    """
    model = loaded.model
    gpt = transformer_of(model)
    dataset = find_data(loaded, config.data)
    text = read_text(loaded, dataset)
    split, ids = choose_part(text, None, trained_on(loaded, dataset))
    prompt = choose_prompt(loaded, ids, config.prompt)  # (1, T)
    # Whole windows, so that all weigh alike, and one target for the last character.
    whole = max(1, min(config.characters, len(ids) - 1) // model.block_size) * model.block_size
    texts = {"text": cut(model, ids[: whole + 1])}
    if prompt.size(1) > 1:
        texts["prompt"] = cut(model, prompt[0].numpy())
    kinds, even_distance = habits(model, texts["text"])
    measured = without_each_head(model, texts)
    reading = read(model, prompt)
    report = {
        "run": str(loaded.path),
        "model": {
            "name": loaded.name,
            "n_layer": gpt.config.n_layer,
            "n_head": gpt.config.n_head,
            "block_size": model.block_size,
            "parameters": count_parameters(gpt if gpt is model else model),  # type: ignore[arg-type]
        },
        "text": {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "split": split,
            "characters": texts["text"].targets,
            "windows": len(texts["text"]),
            "even_distance": even_distance,
        },
        "loss": {name: float(nats.mean()) for name, (nats, _) in measured.items()},
        "heads": _heads(measured, kinds, even_distance, model.block_size),
        "characters": _characters(loaded, prompt[0], reading.log_probs),
    }
    return report, reading.maps


def choose_prompt(loaded: Loaded, ids: IntArray, prompt: str | None) -> Tensor:
    """Return the ids to read (1, T): those of the prompt, or the first of a text's `ids`.

    At most as many as the model reads and a page holds; says on stderr when that cuts the prompt.
    Raises DataError for characters that the model has never seen.
    """
    room, known = min(loaded.model.block_size, MOST), loaded.vocabulary.characters
    if prompt is None:
        return torch.from_numpy(ids[: min(room, OPENING)])[None]
    if "\\" not in known:  # as a shell hands it over, and else surely not meant
        prompt = prompt.replace("\\n", "\n")
    idx = encode_prompt(loaded.vocabulary, prompt)
    if (length := idx.size(1)) > room:
        print(f"the prompt has {length:,} characters; its last {room} are read", file=sys.stderr)
    return idx[:, -room:]


def _heads(
    measured: dict[str, tuple[FloatArray, FloatArray]],
    kinds: list[list[Habits]],
    even_distance: float,
    block_size: int,
) -> list[dict[str, Any]]:
    """Return a row for each head, layer by layer; layers and heads are counted from 1."""
    rows = []
    for layer, row in enumerate(kinds):
        for head, kind in enumerate(row):
            changes = {
                name: (mean_and_error(lacking[layer, head] - nats, block_size))
                for name, (nats, lacking) in measured.items()
            }
            change, error = changes["text"]
            rows.append(
                {
                    "layer": layer + 1,
                    "head": head + 1,
                    "change": change,
                    "error": error,
                    "change_on_prompt": changes.get("prompt", (None, None))[0],
                    "words": kind.words(even_distance),
                    **dataclasses.asdict(kind),
                }
            )
    return rows


def _characters(loaded: Loaded, ids: Tensor, log_probs: Tensor) -> list[dict[str, Any]]:
    """Return a row for each character of the prompt: its surprise, and what is expected next.

    The first has no surprise, as nothing comes before it.
    """
    surprises = (-log_probs[:-1].gather(1, ids[1:, None])[:, 0]).tolist()
    most = log_probs.exp().topk(min(TOP, log_probs.size(1)))
    decode = loaded.vocabulary.decode
    return [
        {
            "character": decode([int(ids[t])]),
            "surprise": surprises[t - 1] if t else None,
            "next": [[decode([i]), p] for i, p in zip(which, values, strict=True)],
        }
        for t, (which, values) in enumerate(
            zip(most.indices.tolist(), most.values.tolist(), strict=True)
        )
    ]


# ---- the page


def packed(weights: Tensor) -> str:
    """Pack a map (T, T) for the page: row t's weights 0..t, two bytes each, in base64."""
    rows, columns = np.tril_indices(weights.size(-1))
    numbers = np.rint(weights.numpy()[rows, columns] * LEVELS).astype("<u2")
    return base64.b64encode(numbers.tobytes()).decode()


def render_page(report: dict[str, Any], maps: Tensor) -> str:
    """Return the page of what `look` returned."""
    data = {**report, "maps": [packed(weights) for weights in maps.flatten(0, 1)]}
    template = resources.files("mingpt").joinpath("look.html").read_text("utf-8")
    start = "".join(row["character"] for row in report["characters"][:40])
    values = {
        "title": html.escape(f"{report['model']['name']} reads “{' '.join(start.split())}…”"),
        "policy": content_policy(template),
        "data": embedded(data),
    }
    # In one pass, so that a prompt that holds "@data@" stays as it is.
    return re.sub("@(title|policy|data)@", lambda match: values[match[1]], template)


def embedded(data: object) -> str:
    r"""Return JSON that may stand inside <script>: `"</p>"` becomes `"\u003c/p\u003e"`."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def content_policy(template: str) -> str:
    """Return the page's content security policy: its own program and style, nothing from outside.

    The prompt is never made into markup; should it ever be, the browser runs nothing of it.
    """
    rules = ["default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    for tag in ("script", "style"):
        found = re.search(rf"<{tag}(?: type=\"module\")?>(.*?)</{tag}>", template, re.DOTALL)
        assert found is not None
        digest = hashlib.sha256(found[1].encode("utf-8")).digest()
        rules.append(f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'")
    return "; ".join(rules)


# ---- the command line


def table_of(heads: list[dict[str, Any]]) -> Table:
    """Lay out the heads, the one that is missed most first."""
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "head", "loss", "on prompt", "back", "before"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("attends to", no_wrap=True)
    for row in sorted(heads, key=lambda row: -row["change"]):
        error, prompt = row["error"], row["change_on_prompt"]
        table.add_row(
            f"{row['layer']}",
            f"{row['head']}",
            f"{row['change']:+.4f}" + ("" if error is None else f" ± {error:.4f}"),
            "" if prompt is None else f"{prompt:+.4f}",
            f"{row['distance']:.1f}",
            f"{row['previous']:.0%}",
            row["words"],
        )
    return table


def main(config: LookConfig) -> None:
    """Draw what each head of a trained model looks at, and measure what it is worth."""
    torch.set_num_threads(1)  # the models are small: threads would mostly wait for each other
    loaded = load_run(choose_run(config.run))
    make_folder(config.out.parent)
    report, maps = look(loaded, config)
    write_file(config.out, render_page(report, maps).encode("utf-8"))
    report["page"] = str(config.out)
    if config.json:
        print(json.dumps(report, indent=2))
        return
    console, text, loss = Console(soft_wrap=True), report["text"], report["loss"]
    windows = f"{text['windows']} windows of {report['model']['block_size']}"
    cli.print_settings(
        console,
        f"{loaded.name} of {loaded.path}",
        {
            "text": f"{text['name']} ({text['split']}), its first {text['characters']:,} "
            f"characters in {windows}",
            "loss": f"{loss['text']:.4f} nats per character"
            + (f"; of the prompt {loss['prompt']:.4f}" if "prompt" in loss else ""),
        },
    )
    console.print(
        "\nnats per character more without each head, ± the standard error over windows; how"
    )
    console.print("many characters back it looks, and its share on the one before:")
    console.print(table_of(report["heads"]))
    print(f"wrote {config.out}")


if __name__ == "__main__":
    cli.run(main)
