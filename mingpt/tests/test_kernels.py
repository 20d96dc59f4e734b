"""The hand-written gradients: equal to PyTorch's of the plain formulas, in double precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt.kernels import causal_conv, relu2, rotate

T, P = 5, 2
ANGLES = torch.arange(T, dtype=torch.float64)[:, None, None] * torch.tensor([1.0, 0.3]).double()
Kernel = Callable[..., Tensor]


def plain_relu2(x: Tensor) -> Tensor:
    """Square what is positive."""
    return x.clamp(min=0) ** 2


def plain_conv(x: Tensor, taps: Tensor) -> Tensor:
    """Convolve each channel (torch correlates, so the taps are turned round)."""
    K, C = taps.shape
    padded = F.pad(x.transpose(1, 2), (K - 1, 0))
    return F.conv1d(padded, taps.flip(0).T[:, None], groups=C).transpose(1, 2)


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Multiply pairs as complex numbers by e^(i angle); leave the rest."""
    a, b, rest = x[..., :P], x[..., P : 2 * P], x[..., 2 * P :]
    turned = torch.complex(a, b) * torch.complex(cos, sin)
    return torch.cat((turned.real, turned.imag, rest), dim=-1)


def taps(K: int) -> tuple[Tensor, Tensor]:
    """Return the inputs of a convolution of K taps."""
    return torch.randn(2, T, 3).double(), torch.randn(K, 3).double()


CASES: dict[str, tuple[Kernel, Kernel, Callable[[], tuple[Tensor, ...]]]] = {
    "relu2": (relu2, plain_relu2, lambda: (torch.randn(4, 7).double(),)),
    "conv of 1 tap": (causal_conv, plain_conv, lambda: taps(1)),
    "conv of 4 taps": (causal_conv, plain_conv, lambda: taps(4)),
    "conv longer than the text": (causal_conv, plain_conv, lambda: taps(T + 3)),
    "rotate, half at rest": (
        lambda x: rotate(x, ANGLES.cos(), ANGLES.sin()),
        lambda x: plain_rotate(x, ANGLES.cos(), ANGLES.sin()),
        lambda: (torch.randn(2, T, 3, 4 * P).double(),),
    ),
    "rotate, none at rest": (
        lambda x: rotate(x, ANGLES.cos(), ANGLES.sin()),
        lambda x: plain_rotate(x, ANGLES.cos(), ANGLES.sin()),
        lambda: (torch.randn(2, T, 3, 2 * P).double(),),
    ),
}


def graded(f: Kernel, inputs: tuple[Tensor, ...], weight: Tensor) -> list[Tensor]:
    """Return f's value, and the gradients of its weighted sum."""
    inputs = tuple(each.clone().requires_grad_() for each in inputs)
    y = f(*inputs)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), inputs)]


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_is_the_plain_formula(name: str) -> None:
    """In value, in the gradient of each input, and by central differences."""
    kernel, plain, make = CASES[name]
    inputs = make()
    weight = torch.randn_like(plain(*inputs))
    for got, expected in zip(
        graded(kernel, inputs, weight), graded(plain, inputs, weight), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(kernel, [each.requires_grad_() for each in inputs])


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_leaves_its_inputs_alone(name: str) -> None:
    """What is multiplied in place is always its own."""
    kernel, _, make = CASES[name]
    inputs = make()
    before = [each.clone() for each in inputs]
    grad = torch.randn_like(kernel(*inputs))
    weight = grad.clone()
    y = kernel(*(each.requires_grad_() for each in inputs))
    torch.autograd.grad(y, inputs, grad)
    assert all(torch.equal(*pair) for pair in zip(before, inputs, strict=True))
    assert torch.equal(grad, weight)


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_works_in_half_precision(name: str) -> None:
    """Value and gradient in bfloat16 are those of double precision, to its three digits.

    Angles and taps stay in float32, as under autocast.
    """
    kernel, plain, make = CASES[name]
    first, *others = make()
    inputs = (first.bfloat16(), *(each.float() for each in others))
    exact = tuple(each.double() for each in inputs)
    weight = torch.ones_like(plain(*exact))
    expected = graded(plain, exact, weight)
    for got, right in zip(graded(kernel, inputs, weight), expected, strict=True):
        torch.testing.assert_close(got.double(), right, atol=0.1, rtol=0.03)


def test_a_negative_zero_and_a_zero_have_no_slope() -> None:
    """At the corner the gradient is 0, as its limit from both sides."""
    x = torch.tensor([0.0, -0.0, -1.0, 2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(relu2(x).sum(), x)
    assert slope.tolist() == [0.0, 0.0, 0.0, 4.0]


def test_a_convolution_by_hand() -> None:
    """y[t] = 10 x[t] + x[t - 1], what lies before the text being 0."""
    x = torch.tensor([1.0, 2.0, 3.0])[None, :, None]
    assert causal_conv(x, torch.tensor([[10.0], [1.0]])).flatten().tolist() == [10.0, 21.0, 32.0]


def test_a_quarter_turn_by_hand() -> None:
    """(a, b) becomes (-b, a), number i being paired with number P + i; the rest stays."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[None, None, None]
    turned = rotate(x, torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
    assert turned.flatten().tolist() == [-3.0, -4.0, 1.0, 2.0, 5.0]
