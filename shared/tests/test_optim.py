"""AdamW's decay groups, and Muon against its definition and PyTorch's own."""

import copy

import pytest
import torch
from torch import nn

from shared.optim import Muon, is_hidden_matrix, make_optimizers, orthogonalize


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "wte": nn.Embedding(7, 4),
            "hidden": nn.Linear(4, 8),
            "norm": nn.LayerNorm(8),
            "lm_head": nn.Linear(8, 7),
        }
    )


def make(module: nn.Module, name: str = "adamw", decay: float = 0.1) -> list[torch.optim.Optimizer]:
    return make_optimizers(
        module,
        name=name,  # type: ignore[arg-type]
        learning_rate=0.01,
        muon_learning_rate=0.02,
        betas=(0.9, 0.95),
        weight_decay=decay,
    )


def set_gradients(module: nn.Module, value: float | None = None) -> None:
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.grad = noise if value is None else torch.full_like(p, value)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_matrices_decay(name: str) -> None:
    """With zero gradients a step shrinks matrices and embeddings and leaves vectors alone."""
    module = make_module()
    before = copy.deepcopy(module.state_dict())
    set_gradients(module, 0.0)
    for optimizer in make(module, name):
        optimizer.step()
    for key, value in module.state_dict().items():
        if value.ndim == 1:
            assert torch.equal(value, before[key]), key
        else:
            assert value.norm() < before[key].norm(), key


def test_adamw_equals_pytorchs_unfused_loop() -> None:
    """Five steps give what torch.optim.AdamW gives parameter by parameter."""
    module = make_module()
    reference = copy.deepcopy(module)
    ours = make(module)
    theirs = [
        torch.optim.AdamW(
            [p], 0.01, (0.9, 0.95), weight_decay=0.1 if p.ndim > 1 else 0.0, foreach=False
        )
        for p in reference.parameters()
    ]
    for _ in range(5):
        set_gradients(module)
        set_gradients(reference)
        for optimizer in (*ours, *theirs):
            optimizer.step()
    for a, b in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_every_parameter_has_exactly_one_optimizer() -> None:
    """Muon gets the hidden matrix only; tied and untied parameters are updated once."""
    module = make_module()
    module["lm_head"].weight = nn.Parameter(torch.zeros(7, 4))  # type: ignore[index]
    module["wte"].weight = module["lm_head"].weight  # type: ignore[index]
    adamw, muon = make(module, "muon")
    of = [[id(p) for g in o.param_groups for p in g["params"]] for o in (adamw, muon)]
    assert of[1] == [id(module["hidden"].weight)]  # type: ignore[index]
    assert sorted(of[0] + of[1]) == sorted({id(p) for p in module.parameters()})


def test_tokens_are_read_and_written_by_adamw() -> None:
    """Names of embeddings and heads are recognised wherever they stand."""
    matrix = nn.Parameter(torch.zeros(2, 2))
    assert is_hidden_matrix("blocks.0.attn.c_attn.weight", matrix)
    for name in (
        "transformer.wte.weight",
        "wpe.weight",
        "token_embedding.weight",
        "lm_head.weight",
    ):
        assert not is_hidden_matrix(name, matrix)
    assert not is_hidden_matrix("blocks.0.norm.weight", nn.Parameter(torch.zeros(2)))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    """Singular values spread over a factor of a hundred end within 0.6..1.3, same vectors."""
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    spread = torch.logspace(-1, 1, u.size(-1))
    matrices = u * spread @ vh
    singular = torch.linalg.svdvals(orthogonalize(matrices))
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    overlap = (orthogonalize(matrices) * (u @ vh)).sum((-2, -1)) / u.size(-1)
    assert overlap.min() > 0.7


def test_a_zero_gradient_is_no_update() -> None:
    """Orthogonalizing zeros gives zeros, not nan."""
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon_equals_pytorchs() -> None:
    """Steps on two shapes agree with torch.optim.Muon, whose iteration runs in bfloat16."""
    torch.manual_seed(0)
    ours = nn.ParameterList([torch.randn(24, 16), torch.randn(16, 24), torch.randn(24, 16)])
    theirs = copy.deepcopy(ours)
    optimizers = [
        Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1),
    ]
    for _ in range(5):
        set_gradients(ours)
        set_gradients(theirs)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        # Five updates of spectral norm 0.02 to 0.025; bfloat16 keeps two to three digits of them.
        torch.testing.assert_close(a, b, atol=3e-3, rtol=0)


def test_muon_refuses_vectors() -> None:
    """A bias has no singular values; the message says what to use instead."""
    with pytest.raises(ValueError, match=r"matrices only, not shape \(3,\); use AdamW"):
        Muon([nn.Parameter(torch.zeros(3))])
