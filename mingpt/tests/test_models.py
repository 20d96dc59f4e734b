"""One suite for every language model, counted or trained: what `model.LanguageModel` promises."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt.gpt import GPT, GPTConfig
from mingpt.hybrid import Hybrid, HybridConfig
from mingpt.model import IGNORED, LanguageModel
from mingpt.ngram import NGram, NGramConfig
from mingpt.recipes import MODERN
from mingpt.rungs import RUNGS
from shared.profiling import measure_flops

V, T = 9, 12
TEXT = np.random.default_rng(0).integers(0, V, 400)
SMALL: dict[str, Any] = {
    "vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 2, "n_embd": 16,
}  # fmt: skip
PAPER: dict[str, Any] = {"norm_place": "post", "activation": "relu", "positions": "sinusoidal"}


def gpt(**options: Any) -> Callable[[], nn.Module]:
    """Return what builds a small GPT."""
    return lambda: GPT(GPTConfig(**{**SMALL, **options}))


def hybrid(**options: Any) -> Callable[[], nn.Module]:
    """Return what builds a small hybrid, counted."""

    def build() -> nn.Module:
        model = Hybrid(HybridConfig(**{**SMALL, **MODERN, **options}))
        model.fit(TEXT)
        return model

    return build


def ngram(n: int) -> Callable[[], nn.Module]:
    """Return what counts n-grams."""

    def build() -> nn.Module:
        model = NGram(NGramConfig(vocab_size=V, n=n, block_size=T))
        model.fit(TEXT)
        return model

    return build


def rung(number: int) -> Callable[[], nn.Module]:
    """Return what builds a rung of the ladder, counted where it counts."""

    def build() -> nn.Module:
        model: Any = RUNGS[number].make(V)
        if RUNGS[number].trainer is None:
            model.fit(TEXT)
        built: nn.Module = model
        return built

    return build


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt": gpt(),
    "gpt, lesson": gpt(attention="lesson"),
    "paper": gpt(**PAPER),
    "paper, lesson": gpt(**PAPER, attention="lesson"),
    "modern": gpt(**MODERN),
    "modern, lesson": gpt(**MODERN, attention="lesson"),
    "modern, post-norm": gpt(**{**MODERN, "norm_place": "post", "norm": "layer", "bias": True}),
    "modern, tied, odd sizes": gpt(**{**MODERN, "tied": True}, d_k=12, n_hidden=7, n_head=4),
    "no places": gpt(positions="none", norm="plain", bias=False),
    "convolution alone": gpt(positions="none", conv=3),
    "hybrid": hybrid(),
    "hybrid, lesson": hybrid(attention="lesson", n=2, shortest=1),
    "hybrid, recent": hybrid(recent=4, n=3),
    "hybrid, learned places": hybrid(positions="learned", tied=True, n=1, shortest=1),
    "1-gram": ngram(1),
    "4-gram": ngram(4),
    **{f"rung {each.name}": rung(i) for i, each in enumerate(RUNGS) if each.name != "ngram"},
}
COUNTED = {"1-gram", "4-gram", "rung uniform", "rung unigram", "rung counted-bigram"}
BLIND = {"1-gram", "rung uniform", "rung unigram"}  # nothing read changes what they say
every_model = pytest.mark.parametrize("name", MODELS)
trained_model = pytest.mark.parametrize("name", [name for name in MODELS if name not in COUNTED])


def made(name: str) -> Any:
    """Build a model with every parameter moved: zeros at the start would hide what they do."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4 / parameter.size(-1) ** 0.5)
    return model


def text(B: int = 2, length: int = T) -> Tensor:
    """Return idx (B, length) with stretches of the counted text, so that counts are found."""
    starts = torch.randint(len(TEXT) - length, (B, 1))
    return torch.from_numpy(TEXT)[starts + torch.arange(length)]


@every_model
@torch.no_grad()
def test_no_model_looks_ahead(name: str) -> None:
    """Changing character t leaves every earlier output as it was, to the bit, and t's not."""
    model, idx = made(name), text()
    idx[1, 3:] = idx[1, : T - 3].clone()  # what repeats is what some models look back for
    before = model(idx)
    differs = 0
    for t in range(T):
        changed = idx.clone()
        changed[:, t] = (idx[:, t] + torch.randint(1, V, (2,))) % V
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        differs += not torch.equal(after[:, t], before[:, t])
    assert differs == (0 if name in BLIND else T)


@every_model
@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_the_logits(name: str) -> None:
    """Logits of every position, finite; the mean over the targets that count."""
    model, idx, targets = made(name), text(3), text(3)
    assert isinstance(model, LanguageModel)
    targets[0, 3:] = targets[2] = IGNORED
    logits = model(idx)
    assert logits.shape == (3, T, V)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(model(idx, targets), expected)


@every_model
def test_where_no_target_counts_the_loss_is_zero(name: str) -> None:
    """And so are all gradients, instead of 0 / 0."""
    model = made(name)
    loss = model(text(), torch.full((2, T), IGNORED))
    assert loss.item() == 0
    if name not in COUNTED:
        loss.backward()
        grads = [each.grad for each in model.parameters() if each.grad is not None]
        assert grads
        assert all((grad == 0).all() for grad in grads)


@every_model
def test_too_long_a_text_is_refused(name: str) -> None:
    """With its length, the model's, and what to do."""
    model = made(name)
    length = model.block_size
    assert model(torch.zeros(1, length, dtype=torch.int64)).shape == (1, length, V)
    rule = f"{length + 1} characters do not fit block_size={length}; keep the last"
    with pytest.raises(ValueError, match=rule):
        model(torch.zeros(1, length + 1, dtype=torch.int64))


def loss_and_gradients(model: Any, idx: Tensor, targets: Tensor) -> list[Tensor]:
    """Return the loss and the gradient of every parameter that has one."""
    model.zero_grad()
    loss = model(idx, targets)
    if loss.requires_grad:
        loss.backward()
    grads = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    return [loss.detach(), *grads]


@every_model
def test_padding_never_changes_a_result(name: str) -> None:
    """What it is does not, to the bit; that it is there does not, to rounding."""
    model, idx, targets = made(name), text(), text()
    targets[:, 7:] = IGNORED
    padded = loss_and_gradients(model, idx, targets)
    repadded = idx.clone()
    repadded[:, 7:] = (idx[:, 7:] + 1) % V
    otherwise = loss_and_gradients(model, repadded, targets)
    assert torch.equal(padded[0], otherwise[0])
    torch.testing.assert_close(padded, otherwise, atol=1e-6, rtol=1e-4)
    short = loss_and_gradients(model, idx[:, :7], targets[:, :7])
    torch.testing.assert_close(padded, short, atol=1e-4, rtol=1e-4)


@every_model
@torch.no_grad()
def test_rows_do_not_see_each_other(name: str) -> None:
    """A row's logits are the same beside any other row, and alone."""
    model, idx = made(name), text(3)
    together = model(idx)
    others = idx.clone()
    others[1:] = text(2)
    assert torch.equal(model(others)[0], together[0])
    alone = torch.cat([model(row[None]) for row in idx])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


@every_model
@torch.no_grad()
def test_a_saved_model_is_the_same_model(name: str) -> None:
    """Its state, loaded into one of other weights, gives the same logits to the bit."""
    model, idx = made(name), text()
    torch.manual_seed(1)
    other = MODELS[name]().eval()
    if isinstance(other, Hybrid | NGram):
        other.fit(TEXT[:50])
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(idx), model(idx))


@trained_model
def test_a_seed_decides_the_weights(name: str) -> None:
    """The same one gives the same, another gives others."""

    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([each.flatten() for each in MODELS[name]().parameters()])

    assert torch.equal(weights(3), weights(3))
    if name != "rung bigram":  # all zeros
        assert not torch.equal(weights(3), weights(4))


def unseen_flops(model: Any) -> float:
    """Count what PyTorch's counter does not see: the elementwise convolution, and counting."""
    if isinstance(model, Hybrid):
        recall = 2.0 * model.config.contexts * V
        return recall + unseen_flops(model.gpt) + unseen_flops(model.ngram)
    if isinstance(model, NGram):
        return 2.0 * model.config.n * V
    if isinstance(model, GPT):  # two convolutions a block, a multiply-add for each tap
        return 2.0 * 2 * model.config.n_layer * model.config.conv * model.config.n_embd
    return 0.0


@every_model
def test_flops_are_those_of_the_forward_pass(name: str) -> None:
    """By PyTorch's counter, with the context full; and what it cannot see, by hand."""
    model = made(name)
    length = model.block_size
    counted = measure_flops(model, torch.zeros(1, length, dtype=torch.int64)) / length
    assert model.flops_per_character() == counted + unseen_flops(model)


@every_model
@torch.no_grad()
def test_half_precision_is_near(name: str) -> None:
    """Under autocast to bfloat16 logits are finite float32 numbers, near those without."""
    model, idx = made(name), text()
    exact = model(idx)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(idx)
    error = (half - exact).abs().max() / exact.abs().max().clamp(min=1)
    assert half.isfinite().all()
    assert error < 0.05


@trained_model
def test_half_precision_has_gradients(name: str) -> None:
    """Finite, and of nearly the same direction as those of single precision."""
    model, idx, targets = made(name), text(), text()
    _, *exact = loss_and_gradients(model, idx, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(idx, targets)
    model.zero_grad()
    loss.backward()
    half = [each.grad for each in model.parameters() if each.grad is not None]
    a, b = (torch.cat([each.flatten() for each in grads]) for grads in (exact, half))
    assert F.cosine_similarity(a, b, dim=0) > 0.98


@trained_model
def test_every_parameter_is_used(name: str) -> None:
    """Each has a gradient somewhere; else it would be a number that nothing reads."""
    model = made(name)
    model(text(4), text(4)).backward()
    unused = [key for key, each in model.named_parameters() if each.grad is None]
    still = [key for key, each in model.named_parameters() if not (each.grad != 0).any()]
    assert (unused, still) == ([], [])
