"""The paper baseline: a scalar engine in which every operation leaves a closure behind.

Rebuilt from the description of karpathy's micrograd: each node holds its children in a set and a
`_backward` closure that reads the node's own gradient. The closure holds the node and the node the
closure, so that every node is a reference cycle, and only Python's garbage collector can free it.
`backward` orders the graph by a recursive depth-first search.
"""

import random
from collections.abc import Callable, Iterable, Sequence


class Value:
    """A number with a gradient; as the engine it rebuilds, it has no slots and checks nothing."""

    def __init__(self, data: float, children: "Iterable[Value]" = (), op: str = "") -> None:
        self.data = data
        self.grad = 0.0
        self._backward: Callable[[], None] = lambda: None
        self._prev = set(children)
        self._op = op

    def __add__(self, other: "Value | float") -> "Value":
        other = other if isinstance(other, Value) else Value(other)
        out = Value(self.data + other.data, (self, other), "+")

        def backward() -> None:
            self.grad += out.grad
            other.grad += out.grad

        out._backward = backward
        return out

    def __mul__(self, other: "Value | float") -> "Value":
        other = other if isinstance(other, Value) else Value(other)
        out = Value(self.data * other.data, (self, other), "*")

        def backward() -> None:
            self.grad += other.data * out.grad
            other.grad += self.data * out.grad

        out._backward = backward
        return out

    def relu(self) -> "Value":
        """Return max(self, 0)."""
        out = Value(0.0 if self.data < 0 else self.data, (self,), "ReLU")

        def backward() -> None:
            self.grad += (out.data > 0) * out.grad

        out._backward = backward
        return out

    def backward(self) -> None:
        """Add to the gradient of every node below."""
        order: list[Value] = []
        seen: set[Value] = set()

        def visit(node: Value) -> None:
            if node not in seen:
                seen.add(node)
                for child in node._prev:
                    visit(child)
                order.append(node)

        visit(self)
        self.grad = 1.0
        for node in reversed(order):
            node._backward()

    def __neg__(self) -> "Value":
        return self * -1

    def __radd__(self, other: float) -> "Value":
        return self + other

    def __rmul__(self, other: float) -> "Value":
        return self * other

    def __sub__(self, other: "Value | float") -> "Value":
        return self + (-other)


class Neuron:
    """A weighted sum, and where `nonlin` is true a ReLU."""

    def __init__(self, n_inputs: int, nonlin: bool = True) -> None:
        self.w = [Value(random.uniform(-1, 1)) for _ in range(n_inputs)]
        self.b = Value(0.0)
        self.nonlin = nonlin

    def __call__(self, x: Sequence[Value]) -> Value:
        """Return the output for the inputs `x`."""
        total = sum((w * v for w, v in zip(self.w, x, strict=True)), self.b)
        return total.relu() if self.nonlin else total

    def parameters(self) -> list[Value]:
        """Return the weights, then the bias."""
        return [*self.w, self.b]


class Layer:
    """Neurons that see the same inputs."""

    def __init__(self, n_inputs: int, n_outputs: int, nonlin: bool) -> None:
        self.neurons = [Neuron(n_inputs, nonlin) for _ in range(n_outputs)]

    def __call__(self, x: Sequence[Value]) -> list[Value]:
        """Return the outputs for the inputs `x`."""
        return [neuron(x) for neuron in self.neurons]

    def parameters(self) -> list[Value]:
        """Return the parameters of all neurons."""
        return [p for neuron in self.neurons for p in neuron.parameters()]


class MLP:
    """Layers, the last of them linear."""

    def __init__(self, n_inputs: int, sizes: Sequence[int]) -> None:
        widths = [n_inputs, *sizes]
        self.layers = [
            Layer(widths[i], widths[i + 1], nonlin=i != len(sizes) - 1) for i in range(len(sizes))
        ]

    def __call__(self, x: Sequence[Value]) -> Value:
        """Return the last layer's first output for the inputs `x`."""
        for layer in self.layers:
            x = layer(x)
        return x[0]

    def parameters(self) -> list[Value]:
        """Return the parameters of all layers."""
        return [p for layer in self.layers for p in layer.parameters()]
