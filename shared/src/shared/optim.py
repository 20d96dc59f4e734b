"""Optimizers: AdamW with the right decay groups, and Muon for the hidden matrices.

A momentum matrix M = U S V^T tells a direction and, by its singular values S, how much each
direction matters to the *recent gradients*. Muon (Jordan et al., 2024) keeps the directions and
sets every singular value to one: the update is U V^T, the steepest step under the spectral norm
(Bernstein & Newhouse, 2024). A few matrix products of Newton-Schulz get there without an SVD.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

OptimizerName = Literal["adamw", "muon"]

# The quintic a x + b x^3 + c x^5 applied to every singular value. Jordan et al. (2024) chose these
# for the steepest slope at zero: after five rounds singular values lie in about 0.7..1.2, and Muon
# is known not to care about that spread.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

# A parameter whose name has one of these parts reads or writes tokens: its rows are looked up one
# by one, so "directions of the matrix" mean nothing, and AdamW serves it better (Jordan, 2024).
TOKEN_PARTS = ("embed", "wte", "wpe", "head")


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Set the singular values of each of (n, rows, cols) `matrices` to about one.

    Works in bfloat16 where the input is bfloat16; a zero matrix stays zero.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    # The iteration converges for spectral norms up to 1, and the Frobenius norm is never smaller.
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by Newton-Schulz (Jordan et al., 2024), for 2-D parameters only.

    An update has spectral norm sqrt(max(1, rows / cols)), which keeps the change of the layer's
    output of the same size for every shape. Weight decay is decoupled, as in AdamW. Matrices of
    one shape are orthogonalized together, as one batch of matrix products.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    shape = tuple(parameter.shape)
                    raise ValueError(f"Muon takes matrices only, not shape {shape}; use AdamW")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)
        return None

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update `parameters`, all of one shape, in place."""
        grads = [p.grad for p in parameters if p.grad is not None]
        buffers = [self._momentum_buffer(p) for p in parameters]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        # Nesterov: look ahead along the momentum that includes this gradient.
        directions = torch._foreach_lerp(grads, buffers, group["momentum"])
        stacked = torch.stack(directions)
        if has_bf16_units(stacked.device):
            stacked = stacked.bfloat16()
        updates = orthogonalize(stacked, group["ns_steps"]).to(parameters[0].dtype)
        rows, cols = parameters[0].shape
        lr = group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(
            parameters, list(updates.unbind()), alpha=-lr * math.sqrt(max(1, rows / cols))
        )

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def has_bf16_units(device: torch.device) -> bool:
    """Say whether bfloat16 matrix products are faster than float32 ones on `device`.

    On a CPU without AVX512-BF16 or AMX they are emulated, and about ten times slower.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    return False


def decayed(parameter: Tensor) -> bool:
    """Say whether weight decay applies: to matrices and embeddings, not to biases and gains.

    A gain decays towards zero, not towards "no effect", and a bias has no scale to control.
    """
    return parameter.ndim >= 2


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Say whether Muon updates this parameter: a matrix that neither reads nor writes tokens."""
    return parameter.ndim == 2 and not any(part in name for part in TOKEN_PARTS)


def make_optimizers(
    module: nn.Module,
    *,
    name: OptimizerName,
    learning_rate: float,
    muon_learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """Return AdamW over all parameters, or AdamW and Muon over two halves of them.

    Every parameter group carries `initial_lr`, which a schedule multiplies.
    """
    named = list(trainable(module))
    matrices = [p for n, p in named if name == "muon" and is_hidden_matrix(n, p)]
    taken = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if decayed(p)], "weight_decay": weight_decay},
        {"params": [p for p in rest if not decayed(p)], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if any(group["params"] for group in groups):
        present = [group for group in groups if group["params"]]
        # One kernel for all parameters: a third of the time of the loop for small models.
        fused = rest[0].device.type in ("cpu", "cuda")
        optimizers.append(torch.optim.AdamW(present, learning_rate, betas, fused=fused))
    if matrices:
        optimizers.append(Muon(matrices, muon_learning_rate, weight_decay=weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield each parameter that is trained once, with its name; tied ones under their first."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
