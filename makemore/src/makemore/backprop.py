"""Every gradient of a batch-normalised MLP by hand: `python -m makemore.backprop`.

The network is the `MLP` of one hidden layer, with each operation on its own line. `forward` keeps
what every line gives; `backward` walks the same lines from the last to the first and writes down
what the chain rule says of each: if y = f(x) and the gradient d_y of the loss is known, then
d_x = d_y * f'(x), summed over all places where x was used. Nothing else happens in autograd.

Two stretches collapse when they are worked out on paper: softmax with cross-entropy
(`cross_entropy_gradient`) and the whole of batch norm (`batch_norm_gradient`). `fast_backward`
uses both, and is what `train` descends by: no autograd anywhere.

    windows --> emb --> x --> z --> [mean centred squared var inv_std normal] a --> h --> scores
    --> [top shifted counts total inv_total probs] log_probs --> loss

Shapes: N windows, K = block_size, C = n_embd, H = n_hidden, V = vocab_size. Rules used often:

    a row added to every row of a matrix     its gradient is the sum over the rows
    a sum over rows                          every row gets the gradient of the sum
    c = a @ b                                d_a = d_c @ b.T and d_b = a.T @ d_c: no other product
                                             of these two has the right shape

The idea of the exercise is that of Karpathy's makemore part 4 (backprop); batch norm's gradients
are also in Ioffe & Szegedy (2015), sec. 3.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from makemore.data import IGNORED, Items, SplitName, context_windows, find_data
from makemore.evaluate import mean_nats
from makemore.generate import sample_items
from makemore.mlp import GAINS, HEAD_STD, MLP, BatchNorm1d, MLPConfig
from makemore.train import Corpus, Encoded, load_corpus
from shared import cli
from shared.errors import NumericalError
from shared.runs import Run, shown_data

PACKAGE = "makemore-backprop"
EPS = 1e-5  # keeps batch norm's division finite, as in mlp.BatchNorm1d
Gradients = dict[str, Tensor]
"""The gradient of the loss by the name of what it is with respect to."""


@dataclass
class Weights:
    """The parameters, as plain tensors."""

    embed: Tensor
    """(V, C): a point for each character."""
    w1: Tensor
    """(K * C, H), used as x @ w1."""
    b1: Tensor
    """(H,), which batch norm makes useless: its gradient is zero."""
    gain: Tensor
    """(H,): the spread of each unit after normalising."""
    bias: Tensor
    """(H,): its mean."""
    w2: Tensor
    """(H, V)."""
    b2: Tensor
    """(V,)."""

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter with its name."""
        return ((each.name, getattr(self, each.name)) for each in fields(self))


@dataclass
class Values:
    """What each line of `forward` gives, in its order."""

    emb: Tensor  # (N, K, C)
    x: Tensor  # (N, K * C)
    z: Tensor  # (N, H)
    mean: Tensor  # (H,)
    centred: Tensor  # (N, H)
    squared: Tensor  # (N, H)
    var: Tensor  # (H,)
    inv_std: Tensor  # (H,)
    normal: Tensor  # (N, H)
    a: Tensor  # (N, H)
    h: Tensor  # (N, H)
    scores: Tensor  # (N, V)
    top: Tensor  # (N, 1)
    shifted: Tensor  # (N, V)
    counts: Tensor  # (N, V)
    total: Tensor  # (N, 1)
    inv_total: Tensor  # (N, 1)
    probs: Tensor  # (N, V)
    log_probs: Tensor  # (N, V)
    loss: Tensor  # ()

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each value with its name."""
        return ((each.name, getattr(self, each.name)) for each in fields(self))


def first_weights(config: MLPConfig, dtype: torch.dtype = torch.float32) -> Weights:
    """Draw the weights that an `MLP` of this config starts from, though not the same numbers.

    Uses torch's global generator. Biases, gain and embedding are as in `mlp.MLP`.
    """
    width, hidden, vocab = config.block_size * config.n_embd, config.n_hidden, config.vocab_size
    return Weights(
        embed=torch.randn(vocab, config.n_embd, dtype=dtype),
        w1=torch.randn(width, hidden, dtype=dtype) * (GAINS["tanh"] / width**0.5),
        b1=torch.zeros(hidden, dtype=dtype),
        gain=torch.ones(hidden, dtype=dtype),
        bias=torch.zeros(hidden, dtype=dtype),
        w2=torch.randn(hidden, vocab, dtype=dtype) * HEAD_STD,
        b2=torch.zeros(vocab, dtype=dtype),
    )


def forward(w: Weights, windows: Tensor, targets: Tensor) -> Values:
    """Compute the loss of predicting `targets` (N,) from `windows` (N, K), one step a line."""
    N = len(windows)
    emb = w.embed[windows]  # (N, K, C)
    x = emb.reshape(N, -1)  # (N, K * C)
    z = x @ w.w1 + w.b1  # (N, H)
    mean = z.sum(0) / N  # (H,)
    centred = z - mean  # (N, H)
    squared = centred**2  # (N, H)
    var = squared.sum(0) / N  # (H,)
    inv_std = (var + EPS) ** -0.5  # (H,)
    normal = centred * inv_std  # (N, H)
    a = w.gain * normal + w.bias  # (N, H)
    h = a.tanh()  # (N, H)
    scores = h @ w.w2 + w.b2  # (N, V)
    top = scores.max(1, keepdim=True).values  # (N, 1)
    shifted = scores - top  # (N, V); nothing above 0, so that exp cannot overflow
    counts = shifted.exp()  # (N, V)
    total = counts.sum(1, keepdim=True)  # (N, 1)
    inv_total = total**-1  # (N, 1)
    probs = counts * inv_total  # (N, V)
    log_probs = probs.log()  # (N, V)
    loss = -log_probs[torch.arange(N), targets].mean()  # ()
    return Values(
        emb, x, z, mean, centred, squared, var, inv_std, normal, a, h,
        scores, top, shifted, counts, total, inv_total, probs, log_probs, loss,
    )  # fmt: skip


def backward(w: Weights, v: Values, windows: Tensor, targets: Tensor) -> Gradients:
    """Return the gradient of the loss by every value and every weight, in the order computed."""
    g = back_through_loss(v, targets)
    g |= back_through_linear(g["scores"], v.h, w.w2, ("h", "w2", "b2"))
    g["a"] = g["h"] * (1 - v.h**2)  # tanh' = 1 - tanh^2
    g |= back_through_norm(g["a"], w, v)
    g |= back_through_linear(g["z"], v.x, w.w1, ("x", "w1", "b1"))
    g["emb"] = g["x"].view_as(v.emb)  # the same numbers in another shape
    g["embed"] = back_through_lookup(g["emb"], windows, w.embed)
    return g


def back_through_loss(v: Values, targets: Tensor) -> Gradients:
    """Return the gradients from the loss back to the scores."""
    N = len(targets)
    # loss = -(sum of the targets' log_probs) / N: all others have no part in it.
    d_log_probs = torch.zeros_like(v.log_probs)
    d_log_probs[torch.arange(N), targets] = -1 / N
    # log' p = 1 / p.
    d_probs = d_log_probs / v.probs
    # probs = counts * inv_total, where inv_total serves a whole row: sum over it.
    d_inv_total = (d_probs * v.counts).sum(1, keepdim=True)
    # (1 / t)' = -1 / t^2.
    d_total = d_inv_total * -(v.total**-2)
    # counts is used twice, in probs and in total, whose gradient goes to every term of the sum.
    d_counts = d_probs * v.inv_total + d_total
    # exp' = exp, which is counts itself.
    d_shifted = d_counts * v.counts
    # shifted = scores - top; zero but for rounding, as softmax is the same for any shift.
    d_top = -d_shifted.sum(1, keepdim=True)
    # scores is used in shifted, and its largest in top.
    d_scores = d_shifted.scatter_add(1, v.scores.argmax(1, keepdim=True), d_top)
    return {
        "log_probs": d_log_probs, "probs": d_probs, "inv_total": d_inv_total, "total": d_total,
        "counts": d_counts, "shifted": d_shifted, "top": d_top, "scores": d_scores,
    }  # fmt: skip


def back_through_linear(
    d_out: Tensor, x: Tensor, weight: Tensor, names: tuple[str, str, str]
) -> Gradients:
    """Return the gradients of out = x @ weight + b, called `names`: of x, the weight and b.

    out_nj = sum_i x_ni weight_ij + b_j, so d_x_ni = sum_j d_out_nj weight_ij, and so on.
    """
    return dict(zip(names, (d_out @ weight.T, x.T @ d_out, d_out.sum(0)), strict=True))


def back_through_norm(d_a: Tensor, w: Weights, v: Values) -> Gradients:
    """Return the gradients from a = gain * normal + bias back to z."""
    N = len(d_a)
    # a = gain * normal + bias, gain and bias being rows used N times.
    d_gain = (d_a * v.normal).sum(0)
    d_bias = d_a.sum(0)
    d_normal = d_a * w.gain
    # normal = centred * inv_std, inv_std again a row.
    d_inv_std = (d_normal * v.centred).sum(0)
    # (u^-1/2)' = -1/2 u^-3/2 = -1/2 inv_std^3.
    d_var = d_inv_std * -0.5 * v.inv_std**3
    # var = (sum of squared) / N: every row gets the same.
    d_squared = (d_var / N).expand_as(v.squared)
    # centred is used twice: in normal, and squared, where (c^2)' = 2 c.
    d_centred = d_normal * v.inv_std + d_squared * 2 * v.centred
    # centred = z - mean, mean being a row.
    d_mean = -d_centred.sum(0)
    # z is used twice: in centred, and in mean = (sum of z) / N.
    d_z = d_centred + d_mean / N
    return {
        "gain": d_gain, "bias": d_bias, "normal": d_normal, "inv_std": d_inv_std, "var": d_var,
        "squared": d_squared, "centred": d_centred, "mean": d_mean, "z": d_z,
    }  # fmt: skip


def back_through_lookup(d_emb: Tensor, windows: Tensor, embed: Tensor) -> Tensor:
    """Return the gradient of embed (V, C), of which `emb = embed[windows]` takes rows.

    A character that stands in many places gets the sum of their gradients; a lookup is the product
    with a one-hot matrix, and this the product with its transpose.
    """
    C = embed.size(1)
    return torch.zeros_like(embed).index_add(0, windows.flatten(), d_emb.reshape(-1, C))


def cross_entropy_gradient(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient (N, V) of the mean cross-entropy by the scores, in one step.

    For one row, loss = -s_t + log(sum_j exp s_j), so d loss / d s_i = p_i - [i = t]: every score
    is pulled down by its probability, and the target's pushed up by one. N rows share the mean.
    """
    d_scores = F.softmax(scores, 1)
    d_scores[torch.arange(len(targets)), targets] -= 1
    return d_scores / len(targets)


def batch_norm_gradient(d_a: Tensor, normal: Tensor, inv_std: Tensor, gain: Tensor) -> Tensor:
    """Return the gradient (N, H) by what goes into batch norm, in one step.

    Write n for normal and d = gain * d_a for its gradient. From `back_through_norm`,

        d_var     = -1/2 inv_std^3 sum(d centred) = -1/2 inv_std^2 sum(d n)
        d_centred = inv_std d + 2 centred d_var / N = inv_std (d - n sum(d n) / N)
        d_z       = d_centred - (sum of d_centred) / N,   where sum(n) = 0, so
        d_z       = inv_std (d - mean(d) - n mean(d n)):

    of d only the part remains that neither shifts the rows (mean) nor stretches them (along n),
    since batch norm takes both away.
    """
    d = d_a - d_a.mean(0) - normal * (d_a * normal).mean(0)
    return gain * inv_std * d


def fast_backward(w: Weights, v: Values, windows: Tensor, targets: Tensor) -> Gradients:
    """Return the gradients of the seven weights alone, by the two short cuts."""
    d_scores = cross_entropy_gradient(v.scores, targets)
    d_a = (d_scores @ w.w2.T) * (1 - v.h**2)
    d_z = batch_norm_gradient(d_a, v.normal, v.inv_std, w.gain)
    d_emb = d_z @ w.w1.T
    return {
        "embed": back_through_lookup(d_emb, windows, w.embed),
        "w1": v.x.T @ d_z,
        "b1": d_z.sum(0),
        "gain": (d_a * v.normal).sum(0),
        "bias": d_a.sum(0),
        "w2": v.h.T @ d_scores,
        "b2": d_scores.sum(0),
    }


# ---- training by these gradients


def train(
    w: Weights,
    windows: Tensor,
    targets: Tensor,
    *,
    max_steps: int,
    batch_size: int,
    learning_rate: float,
) -> BatchNorm1d:
    """Descend by `fast_backward` alone, changing `w`; return the batch norm for evaluation.

    Plain gradient descent on random rows of `windows` and `targets`, drawn from torch's global
    generator; the learning rate falls linearly to zero. Raises NumericalError when the loss is not
    finite.
    """
    norm = BatchNorm1d(len(w.gain), EPS).to(w.gain)  # for its running averages only
    for step in track_steps(max_steps):
        rows = torch.randint(len(windows), (batch_size,))
        v = forward(w, windows[rows], targets[rows])
        if not v.loss.isfinite():
            raise NumericalError(
                f"the loss of step {step + 1} is not finite; try a smaller --learning-rate than "
                f"{learning_rate}"
            )
        gradients = fast_backward(w, v, windows[rows], targets[rows])
        for name, weight in w.named():
            weight -= learning_rate * (1 - step / max_steps) * gradients[name]
        norm.remember(v.mean, v.var, batch_size)
    return norm


def as_model(w: Weights, norm: BatchNorm1d, config: MLPConfig) -> MLP:
    """Return the `MLP` that these weights are, to measure it and sample from it.

    It has no b1: as batch norm takes z - mean, the bias moves into the running mean.
    """
    model = MLP(config).to(w.gain)
    state = {
        "embed.weight": w.embed,
        "layers.0.linear.weight": w.w1.T,
        "layers.0.norm.weight": w.gain,
        "layers.0.norm.bias": w.bias,
        "layers.0.norm.running_mean": norm.running_mean - w.b1,
        "layers.0.norm.running_var": norm.running_var,
        "head.weight": w.w2.T,
        "head.bias": w.b2,
    }
    model.load_state_dict(state)
    return model


def track_steps(max_steps: int) -> Iterable[int]:
    """Count the steps, with a bar on stderr if that is a terminal."""
    console = Console(stderr=True)
    steps = range(max_steps)
    return track(steps, "by hand", console=console, disable=not console.is_terminal)


# ---- the command


@dataclass(frozen=True)
class Comparison:
    """How a gradient by hand compares with autograd's."""

    name: str
    shape: tuple[int, ...]
    difference: float
    """The largest, of any entry."""
    exact: bool
    """Whether all bits agree."""


def compare(w: Weights, windows: Tensor, targets: Tensor) -> list[Comparison]:
    """Compute every gradient both ways, in the precision of the weights.

    The list ends with what the two short cuts give.
    """
    copies = Weights(*(weight.detach().clone().requires_grad_() for _, weight in w.named()))
    v = forward(copies, windows, targets)
    tensors = dict(copies.named()) | dict(v.named())
    del tensors["loss"]
    gradients = torch.autograd.grad(v.loss, list(tensors.values()))
    expected = dict(zip(tensors, gradients, strict=True))
    with torch.no_grad():
        found = backward(copies, v, windows, targets)
        found["scores, in one step"] = cross_entropy_gradient(v.scores, targets)
        found["z, in one step"] = batch_norm_gradient(found["a"], v.normal, v.inv_std, w.gain)
    rows = []
    for name, gradient in found.items():
        other = expected[name.partition(",")[0]]
        difference = float((gradient - other).abs().max())
        rows.append(Comparison(name, tuple(other.shape), difference, torch.equal(gradient, other)))
    return rows


@dataclass(frozen=True, kw_only=True)
class BackpropConfig:
    """What to differentiate, and how long to train by it."""

    data: str = ""
    """A file of one item a line, or a data set's name (python -m shared.datasets lists them); names
    if not given, or words where that can't be had."""
    split: SplitName = "karpathy"
    """karpathy: the last 1000 items of a fixed permutation are the test part; random: 80/10/10."""
    block_size: int = 3
    """Characters of context."""
    n_embd: int = 10
    """Numbers that stand for a character."""
    n_hidden: int = 100
    """Hidden units."""
    max_steps: int = 10_000
    """Steps of gradient descent; 0 only compares the gradients."""
    batch_size: int = 32
    """Windows a step."""
    learning_rate: float = 0.3
    """Of the first step; it falls linearly to zero."""
    seed: int = 0
    """Seed of the first weights, the batches and the samples."""
    samples: int = 10
    """Items to make up at the end."""
    out: Path | None = None
    """Run folder, for result.json; runs/makemore-backprop/<start time> if not given."""
    json: bool = False
    """Print JSON for programs."""

    def __post_init__(self) -> None:
        self.shape(1)  # refuses what an MLP would
        # Batch norm of a single row has no variance, and so no gradient to speak of.
        for name, least in (("max_steps", 0), ("batch_size", 2), ("samples", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate={self.learning_rate} must be above 0; try 0.3")

    def shape(self, vocab_size: int) -> MLPConfig:
        """Return the `MLP` that is taken apart here."""
        return MLPConfig(
            vocab_size=vocab_size,
            block_size=self.block_size,
            n_embd=self.n_embd,
            n_hidden=self.n_hidden,
            batch_norm=True,
        )


def all_windows(items: Items, block_size: int) -> tuple[Tensor, Tensor]:
    """Return every context of the items (N, K) and what follows it (N,)."""
    idx, targets = items.batch(range(len(items)))
    keep = targets != IGNORED
    return context_windows(idx, block_size)[keep], targets[keep]


def check(config: BackpropConfig, shape: MLPConfig, encoded: Encoded) -> list[Comparison]:
    """Compare all gradients on one batch, in double precision."""
    windows, targets = all_windows(encoded.train, shape.block_size)
    rows = torch.randint(len(windows), (config.batch_size,))
    weights = first_weights(shape, torch.float64)
    # Nothing at its neutral start, where a forgotten gain or bias would not show.
    for _, weight in weights.named():
        weight += 0.1 * torch.randn_like(weight)
    return compare(weights, windows[rows], targets[rows])


def learn(config: BackpropConfig, shape: MLPConfig, encoded: Encoded) -> MLP:
    """Train by hand on the training items and return the model."""
    weights = first_weights(shape)
    norm = train(
        weights,
        *all_windows(encoded.train, shape.block_size),
        max_steps=config.max_steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
    )
    return as_model(weights, norm, shape).eval()


def main(config: BackpropConfig) -> None:
    """Compare every gradient by hand with autograd's, then train by them alone."""
    torch.set_num_threads(1)  # the matrices are small, and threads would only wait for each other
    dataset = find_data(config.data)
    corpus = load_corpus(dataset, config.split, split_seed=42, unk=0)
    encoded = Encoded.of(corpus.splits, corpus.vocabulary)
    shape = config.shape(len(corpus.vocabulary))
    saved = {**asdict(config), "out": None, "sha256": corpus.sha256}
    with Run.open(PACKAGE, config.out, resume=False, config=saved) as run:
        torch.manual_seed(config.seed)
        rows = check(config, shape, encoded)
        if not config.json:
            Console().print(gradients_table(rows))
        model = learn(config, shape, encoded)
        metrics = {"largest_difference": max(row.difference for row in rows)}
        if config.max_steps:  # of an untrained net there is nothing to tell
            for part, items in vars(encoded).items():
                metrics[f"{part}_loss"] = mean_nats(model, items)
        result = run.write_result(
            seed=config.seed,
            device="cpu",
            data_name=shown_data(corpus.name),
            data_sha256=corpus.sha256,
            parameters=sum(weight.numel() for weight in model.parameters()),
            steps=config.max_steps,
            metrics=metrics,
        )
        tell(config, corpus, model, rows, result)


def tell(
    config: BackpropConfig,
    corpus: Corpus,
    model: MLP,
    rows: Sequence[Comparison],
    result: dict[str, Any],
) -> None:
    """Print what came of the training, if there was any, and made-up items."""
    samples = sample_items(
        model,
        corpus.vocabulary,
        config.samples if config.max_steps else 0,
        generator=torch.Generator().manual_seed(config.seed),
        max_length=corpus.report.longest,
    )
    if config.json:
        found = {"gradients": [asdict(row) for row in rows], "samples": samples}
        print(json.dumps({**result, **found}, indent=2))
        return
    if not config.max_steps:
        return
    losses = {part: f"{result[f'{part}_loss']:.4f}" for part in ("train", "val", "test")}
    title = f"\n{config.max_steps:,} steps without autograd, nats per character"
    cli.print_settings(Console(), title, {**losses, "made up": " ".join(samples)})


def gradients_table(rows: Sequence[Comparison]) -> Table:
    """Lay out how the gradients compare."""
    table = Table("gradient by", "shape", box=None, pad_edge=False)
    table.add_column("largest difference", justify="right")
    table.add_column("from autograd's")
    for row in rows:
        agreement = "exact" if row.exact else "approximate"
        table.add_row(row.name, str(row.shape), f"{row.difference:.1e}", agreement)
    return table


if __name__ == "__main__":
    cli.run(main)
