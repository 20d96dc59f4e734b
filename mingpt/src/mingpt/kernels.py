"""Three small operations whose gradients are worth writing by hand: half the passes over memory.

Small models on a CPU spend as much time between the matrix products as in them. Each function
here equals the plain formula in its docstring, in value and gradient; the tests hold it to that.

Shapes: B batch, T time, C channels, K taps, D = d_k numbers per head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def relu2(x: Tensor) -> Tensor:
    """Square what is positive: max(0, x)^2 (So et al., 2021)."""
    y: Tensor = _Relu2.apply(x)  # type: ignore[no-untyped-call]
    return y


def causal_conv(x: Tensor, taps: Tensor) -> Tensor:
    """Mix each channel with its own recent past: y[t] = sum_k taps[k] x[t - k].

    x (B, T, C), taps (K, C); what lies before the first position counts as 0.
    """
    y: Tensor = _CausalConv.apply(x, taps)  # type: ignore[no-untyped-call]
    return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of numbers by an angle: (a, b) to (a cos - b sin, a sin + b cos).

    Su et al. (2021), eq. 34. x (B, T, H, D), cos and sin (T, 1, P): number i of a head is paired
    with number P + i for i below P; the numbers from 2 P on stay as they are.
    """
    y: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return y


class _Relu2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return grad.mul(positive).mul_(2)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        y = x * taps[0]
        for k in range(1, min(len(taps), x.size(1))):
            y[:, k:].addcmul_(x[:, :-k], taps[k])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, taps = ctx.saved_tensors
        grad_x, grad_taps = grad * taps[0], torch.zeros_like(taps)
        grad_taps[0] = (grad * x).sum((0, 1))
        for k in range(1, min(len(taps), x.size(1))):
            later = grad[:, k:]
            grad_x[:, :-k].addcmul_(later, taps[k])
            grad_taps[k] = (later * x[:, :-k]).sum((0, 1))
        return grad_x, grad_taps


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None  # a rotation's transpose turns back


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = cos.size(-1)
    a, b, y = x[..., :pairs], x[..., pairs : 2 * pairs], torch.empty_like(x)
    torch.mul(a, cos, out=y[..., :pairs]).addcmul_(b, sin, value=-1)
    torch.mul(a, sin, out=y[..., pairs : 2 * pairs]).addcmul_(b, cos)
    y[..., 2 * pairs :] = x[..., 2 * pairs :]
    return y
