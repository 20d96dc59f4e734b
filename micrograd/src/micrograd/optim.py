"""Optimisers: what to do with gradients.

    optimizer = SGD(model.parameters(), learning_rate=0.1, momentum=0.9)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

Both take `weight_decay`, which pulls each parameter towards 0 by `learning_rate * weight_decay` of
itself in each step, apart from the gradient (Loshchilov and Hutter, 2019); that product is at most
1, or parameters would change their sign. `learning_rate` may be changed between steps.
"""

import math
from collections.abc import Iterable
from typing import Any

from micrograd.engine import Value
from micrograd.errors import NumericalError, UsageError
from micrograd.numeric import MAX


class Optimizer:
    """What SGD and Adam share."""

    def __init__(
        self, parameters: Iterable[Value], learning_rate: float, weight_decay: float
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        if not self.parameters:
            raise UsageError("no parameters to optimise; pass model.parameters()")
        if not 0.0 < learning_rate < math.inf:
            raise UsageError(f"learning_rate={learning_rate} must be a positive number")
        if not 0.0 <= weight_decay < math.inf:
            raise UsageError(f"weight_decay={weight_decay} must be at least 0")
        self._shrink()

    def zero_grad(self) -> None:
        """Set all gradients to 0."""
        for p in self.parameters:
            p.grad = 0.0

    def step(self) -> None:
        """Change the parameters by their gradients.

        Raises NumericalError where a result is not finite; the parameters and what the optimiser
        remembers are then as before.
        """
        shrink, (updates, memory) = self._shrink(), self._propose()
        data = [shrink * p.data - d for p, d in zip(self.parameters, updates, strict=True)]
        for p, x in zip(self.parameters, data, strict=True):
            if not -MAX <= x <= MAX:
                raise NumericalError(
                    f"a parameter would become {x} from {p.data} by gradient {p.grad}; "
                    f"try a learning_rate below {self.learning_rate}"
                )
        for p, x in zip(self.parameters, data, strict=True):
            p.data = x
        vars(self).update(memory)

    def _propose(self) -> tuple[list[float], dict[str, Any]]:
        """Return what to subtract from each parameter, and the attributes after such a step."""
        raise NotImplementedError

    def _shrink(self) -> float:
        """Return the factor of weight decay. Raises UsageError for one below 0."""
        factor = 1.0 - self.learning_rate * self.weight_decay
        if factor < 0.0:
            raise UsageError(
                f"learning_rate={self.learning_rate} times weight_decay={self.weight_decay} must "
                "be at most 1, or each step turns the sign of every weight"
            )
        return factor


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum as in PyTorch: v = momentum * v + gradient."""

    def __init__(
        self,
        parameters: Iterable[Value],
        learning_rate: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, learning_rate, weight_decay)
        if not 0.0 <= momentum < 1.0:
            raise UsageError(f"momentum={momentum} must be in [0, 1)")
        self.momentum = momentum
        self._velocity = [0.0] * len(self.parameters)

    def _propose(self) -> tuple[list[float], dict[str, Any]]:
        grads = [float(p.grad) for p in self.parameters]
        if self.momentum:
            pairs = zip(self._velocity, grads, strict=True)
            grads = [self.momentum * v + g for v, g in pairs]
        return [self.learning_rate * g for g in grads], {"_velocity": grads}


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015, algorithm 1): each parameter has a step size of its own."""

    def __init__(
        self,
        parameters: Iterable[Value],
        learning_rate: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, learning_rate, weight_decay)
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise UsageError(f"betas={betas} must be in [0, 1)")
        if not eps > 0.0:
            raise UsageError(f"eps={eps} must be positive")
        self.betas, self.eps = betas, eps
        self._steps = 0
        self._means = [0.0] * len(self.parameters)
        self._squares = [0.0] * len(self.parameters)

    def _propose(self) -> tuple[list[float], dict[str, Any]]:
        steps = self._steps + 1
        (b1, b2), grads = self.betas, [float(p.grad) for p in self.parameters]
        means = [b1 * m + (1.0 - b1) * g for m, g in zip(self._means, grads, strict=True)]
        squares = [b2 * s + (1.0 - b2) * g * g for s, g in zip(self._squares, grads, strict=True)]
        if max(squares) > MAX:  # it would divide by infinity, and silently stand still
            raise NumericalError("the square of a gradient overflows; scale the loss down")
        # Both averages start at 0, and are corrected for it (Kingma and Ba, sec. 3).
        rate = self.learning_rate / (1.0 - b1**steps)
        scale = math.sqrt(1.0 - b2**steps)
        updates = [
            rate * m / (math.sqrt(s) / scale + self.eps)
            for m, s in zip(means, squares, strict=True)
        ]
        return updates, {"_steps": steps, "_means": means, "_squares": squares}
