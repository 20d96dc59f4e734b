"""Neurons, layers and networks of Values.

    model = MLP(2, [16, 16, 1])
    score = model([0.5, -1.2])
    score.backward()

A neuron computes f(w . x + b). Written with Values (`Neuron.__call__`), every product and every sum
is a node: 33 for a neuron of 16 inputs. That is the lesson, and what a drawing shows; and it spends
its time on nodes whose derivatives everybody knows. So a layer and an MLP compute fused by default:
one node for the whole network, which knows the two formulas of a layer (Rumelhart, Hinton and
Williams, 1986, eq. 6 and 7),

    dL/dw[j][i] = x[j] * g[i]        dL/dx[j] = sum over i of w[j][i] * g[i]

where g[i] is the gradient by w . x + b of neuron i. Values and gradients are those of the plain
network (to rounding; the tests hold them equal); `MLP(..., fused=False)` is the plain one.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import add, mul
from pathlib import Path
from typing import Any, NamedTuple, Self, SupportsIndex, TypeAlias

from micrograd import saving
from micrograd.engine import Fan, Number, Value
from micrograd.errors import ArtefactError, DataError, MicrogradError, UsageError
from micrograd.numeric import failure, number, sigmoid

Floats: TypeAlias = list[float]


class Activation(NamedTuple):
    """An activation function: on a Value, on a list of floats, and its slopes by its outputs."""

    on_value: Callable[[Value], Value]
    on_floats: Callable[[Floats], Floats]
    slopes: Callable[[Floats], Floats]


def _relu(zs: Floats) -> Floats:
    return [z if z > 0.0 else 0.0 for z in zs]


def _relu_slopes(ys: Floats) -> Floats:
    return [1.0 if y else 0.0 for y in ys]


def _tanh(zs: Floats) -> Floats:
    return list(map(math.tanh, zs))


def _tanh_slopes(ys: Floats) -> Floats:
    return [1.0 - y * y for y in ys]


def _sigmoid(zs: Floats) -> Floats:
    return list(map(sigmoid, zs))


def _sigmoid_slopes(ys: Floats) -> Floats:
    return [y * (1.0 - y) for y in ys]


def _same(z: Value) -> Value:
    return z


def _ones(ys: Floats) -> Floats:
    return [1.0] * len(ys)


ACTIVATIONS = {
    "relu": Activation(Value.relu, _relu, _relu_slopes),
    "tanh": Activation(Value.tanh, _tanh, _tanh_slopes),
    "sigmoid": Activation(Value.sigmoid, _sigmoid, _sigmoid_slopes),
    "linear": Activation(_same, list, _ones),
}

INITS: dict[str, Callable[[random.Random, int, int], float]] = {
    # karpathy's micrograd; fine for two inputs, too large for many
    "uniform": lambda rng, _in, _out: rng.uniform(-1.0, 1.0),
    # He et al. (2015), eq. 10: for ReLU
    "he": lambda rng, n_in, _out: rng.gauss(0.0, math.sqrt(2.0 / n_in)),
    # Glorot and Bengio (2010), eq. 16: for tanh and sigmoid
    "xavier": lambda rng, n_in, n_out: rng.uniform(-1.0, 1.0) * math.sqrt(6.0 / (n_in + n_out)),
}


class Weights:
    """The numbers of a layer: `columns[j][i]` weighs input j in neuron i; `bias[i]` is added.

    `column_grads` and `bias_grads` are their gradients. A backward pass collects, for each time the
    layer was used, its inputs xs and the gradients gs of its weighted sums; what they make of the
    weights is computed for all of them at once (`close`), and added when the pass ends well.
    """

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        self.columns = [[0.0] * n_outputs for _ in range(n_inputs)]
        self.bias = [0.0] * n_outputs
        self.column_grads = [[0.0] * n_outputs for _ in range(n_inputs)]
        self.bias_grads = [0.0] * n_outputs
        self._copy: list[Floats] | None = None
        self.forget()

    def copy(self) -> list[Floats]:
        """Return the columns as they are now, to keep; the same list until a weight changes."""
        if self._copy is None:
            self._copy = [column[:] for column in self.columns]
        return self._copy

    def changed(self) -> None:
        """Note that a weight has changed."""
        self._copy = None

    def weigh(self, xs: Floats) -> Floats:
        """Return w . x + b for inputs (n_inputs), as (n_outputs)."""
        zs = self.bias
        for x, column in zip(xs, self.columns, strict=True):
            if x:  # half of all inputs are zero behind a ReLU
                zs = [z + x * w for z, w in zip(zs, column)]  # noqa: B905  # strict costs a fifth
        return zs

    def forget(self) -> None:
        """Drop what the pass under way has collected."""
        self.collected: list[tuple[Floats, Floats]] = []
        self.fresh: list[Floats] = []

    def collect(self, xs: Floats, gs: Floats) -> None:
        """Note one use of the layer: inputs (n_inputs), gradients of its sums (n_outputs)."""
        self.collected.append((xs, gs))

    def close(self) -> bool:
        """Compute dL/dw[j][i], the sum of x[j] * g[i] over all uses.

        Returns whether it is finite, also when added to the gradients of earlier passes.
        """
        if not self.collected:
            return True
        xs, gs = zip(*self.collected, strict=True)
        g_rows = list(zip(*gs, strict=True))  # for each neuron, its gradient in each use
        self.fresh = [[sum(map(mul, x, g)) for g in g_rows] for x in zip(*xs, strict=True)]
        self.fresh.append(list(map(sum, g_rows)))
        both = zip((*self.column_grads, self.bias_grads), self.fresh, strict=True)
        return all(all(map(math.isfinite, map(add, grads, fresh))) for grads, fresh in both)

    def keep(self, undo: list[tuple[Floats, Floats]]) -> None:
        """Add what `close` computed to the gradients, in place: Parameters look at them."""
        for grads, fresh in zip((*self.column_grads, self.bias_grads), self.fresh, strict=False):
            undo.append((grads, grads[:]))
            grads[:] = map(add, grads, fresh)
        self.forget()


class Parameter(Value):
    """A Value that lives in a list: `data` is values[i], and `grad` is grads[i].

    It behaves as any leaf, and a layer can compute with the whole list at once. It takes other
    attributes too, such as a program's own momentum.
    """

    __slots__ = ("__dict__", "_grads", "_i", "_values", "_weights")

    def __init__(self, weights: Weights, values: Floats, grads: Floats, i: int) -> None:
        self._weights = weights
        self._values = values
        self._grads = grads
        self._i = i
        self._a = self._b = None
        self._op = ""
        self._uses = 0

    @property
    def data(self) -> float:
        """The number."""
        return self._values[self._i]

    @data.setter
    def data(self, x: float) -> None:
        self._values[self._i] = number(x)
        self._weights.changed()

    @property
    def grad(self) -> Any:
        """The gradient."""
        return self._grads[self._i]

    @grad.setter
    def grad(self, x: Any) -> None:
        self._grads[self._i] = x

    def __reduce__(self) -> tuple[Any, ...]:
        return Parameter, (self._weights, self._values, self._grads, self._i)


class Module:
    """What has parameters: a Neuron, a Layer, an MLP."""

    def parameters(self) -> list[Value]:
        """Return the parameters, each a leaf."""
        return []

    def zero_grad(self) -> None:
        """Set all gradients to 0, before the next backward pass adds to them."""
        for p in self.parameters():
            p.grad = 0.0

    def state_dict(self) -> dict[str, Floats]:
        """Return the numbers by name: each neuron's weights, then its bias."""
        return {
            name: [p.data for p in neuron.parameters()] for name, neuron in self._named_neurons()
        }

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take over numbers of the same shape, or raise ArtefactError and change nothing."""
        neurons = dict(self._named_neurons())
        if state.keys() != neurons.keys():
            odd = sorted(state.keys() ^ neurons.keys())
            raise ArtefactError(f"the state is of another model: only one of them has {odd[0]!r}")
        for name, neuron in neurons.items():
            if len(state[name]) != len(neuron.parameters()):
                raise ArtefactError(
                    f"{name}: the state has {len(state[name])} numbers, "
                    f"the model {len(neuron.parameters())} (its weights and a bias)"
                )
        numbers = {name: [number(x) for x in values] for name, values in state.items()}
        for name, neuron in neurons.items():
            for p, x in zip(neuron.parameters(), numbers[name], strict=True):
                p.data = x

    def _named_neurons(self) -> "Iterator[tuple[str, Neuron]]":
        """Yield the neurons with their names, such as `layers.0.neurons.2`."""
        raise NotImplementedError(f"{type(self).__name__} needs a _named_neurons() of its own")


class _Fixed(tuple[Any, ...]):
    """The weights of a fused neuron, or the neurons of a fused layer.

    Another in their place would not be seen by what computes with the lists behind them.
    """

    __slots__ = ()

    def __setitem__(self, *_: Any) -> None:
        raise UsageError(
            "the parts of a fused layer are fixed; change a weight's number, "
            "neuron.w[i].data = ..., or make the network with fused=False"
        )

    def __add__(self, other: Iterable[Any]) -> list[Any]:  # type: ignore[override]
        return [*self, *other]

    def __radd__(self, other: Iterable[Any]) -> list[Any]:
        return [*other, *self]


class Neuron(Module):
    """f(w . x + b), with f the activation, or none where `nonlin` is False.

    `w` are its weights and `b` its bias. `init` is uniform (in -1..1, karpathy's), he or xavier;
    the bias starts at 0. Random numbers come from `rng`, by default Python's global generator.
    With `weights`, the parameters of neuron `i` live in those of a fused layer.
    """

    def __init__(
        self,
        nin: int,
        nonlin: bool = True,
        *,
        activation: str = "relu",
        init: str = "uniform",
        rng: random.Random | None = None,
        n_outputs: int = 1,
        weights: Weights | None = None,
        i: int = 0,
    ) -> None:
        _named(ACTIVATIONS, activation, "activation")  # known, even where it is not used
        self.activation = activation if nonlin else "linear"
        self._act = ACTIVATIONS[self.activation]
        draw = _named(INITS, init, "init")
        numbers = [draw(rng or random, nin, n_outputs) for _ in range(_size(nin))]
        self._w: Sequence[Value]
        self._b: Value
        if weights is None:
            self._w, self._b = [Value(x) for x in numbers], Value(0.0)
        else:
            pairs = zip(weights.columns, weights.column_grads, strict=True)
            self._w = _Fixed(Parameter(weights, values, grads, i) for values, grads in pairs)
            self._b = Parameter(weights, weights.bias, weights.bias_grads, i)
            for w, x in zip(self._w, numbers, strict=True):
                w.data = x

    @property
    def w(self) -> Sequence[Value]:
        """The weights, one for each input; of a fused layer they can't be replaced."""
        return self._w

    @w.setter
    def w(self, weights: Sequence[Value]) -> None:
        self._replaceable()
        self._w = list(weights)

    @property
    def b(self) -> Value:
        """The bias."""
        return self._b

    @b.setter
    def b(self, bias: Value) -> None:
        self._replaceable()
        self._b = bias

    def _replaceable(self) -> None:
        """Raise UsageError where the parameters live in a fused layer."""
        if isinstance(self._w, _Fixed):
            self._w[0] = None

    @property
    def nonlin(self) -> bool:
        """Whether there is an activation function, under karpathy's name for it."""
        return self.activation != "linear"

    def __call__(self, x: Sequence[Number]) -> Value:
        """Return the output for the inputs `x`, with a node for every product and sum."""
        _check_inputs(x, len(self._w), repr(self))
        total = self._b
        for w, v in zip(self._w, x, strict=True):
            total = total + w * v
        return self._act.on_value(total)

    def parameters(self) -> list[Value]:
        """Return the weights, then the bias."""
        return [*self._w, self._b]

    def _named_neurons(self) -> "Iterator[tuple[str, Neuron]]":
        yield "neuron", self

    def __repr__(self) -> str:
        return f"{_NAMES[self.activation]}Neuron({len(self._w)})"


_NAMES = {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid", "linear": "Linear"}


class Layer(Module):
    """Neurons that see the same inputs; keywords as for `Neuron`, and `fused` (see above)."""

    def __init__(
        self,
        nin: int,
        nout: int,
        nonlin: bool = True,
        *,
        fused: bool = True,
        **kwargs: Any,
    ) -> None:
        self.fused = fused
        self.weights = Weights(_size(nin), _size(nout)) if fused else None
        neurons = [
            Neuron(nin, nonlin, n_outputs=nout, weights=self.weights, i=i, **kwargs)
            for i in range(_size(nout))
        ]
        self.neurons: Sequence[Neuron] = _Fixed(neurons) if fused else neurons
        self.activation = self.neurons[0].activation
        self.act = ACTIVATIONS[self.activation]

    def __call__(self, x: Sequence[Number]) -> "Value | list[Value]":
        """Return the outputs for the inputs `x`; of a layer of one neuron, its output alone."""
        outputs = Forward([self], x).outputs() if self.fused else self.plain(x)
        return outputs[0] if len(outputs) == 1 else outputs

    def plain(self, x: Sequence[Number]) -> list[Value]:
        """Return the outputs for the inputs `x`, made of ordinary nodes."""
        return [neuron(x) for neuron in self.neurons]

    def parameters(self) -> list[Value]:
        """Return the parameters, neuron by neuron."""
        return [p for neuron in self.neurons for p in neuron.parameters()]

    def _named_neurons(self) -> Iterator[tuple[str, Neuron]]:
        for i, neuron in enumerate(self.neurons):
            yield f"neurons.{i}", neuron

    def __repr__(self) -> str:
        return f"Layer of [{', '.join(map(repr, self.neurons))}]"


class MLP(Module):
    """A multi-layer perceptron: `nouts` has the size of each layer; the last is linear.

    Keywords: `activation` (relu, tanh, sigmoid, linear), `init` (uniform, he, xavier), `rng`, a
    random.Random, and `fused` (see above). Raises UsageError for what is none of these.
    """

    def __init__(self, nin: int, nouts: Sequence[int], **kwargs: Any) -> None:
        if not isinstance(nouts, Sequence) or not nouts:
            raise UsageError(f"{nouts!r}: an MLP needs a list of layer sizes, such as [16, 16, 1]")
        self.sizes = [_size(n) for n in (nin, *nouts)]
        self.layers = [
            Layer(a, b, nonlin=i < len(nouts) - 1, **kwargs)
            for i, (a, b) in enumerate(pairwise(self.sizes))
        ]

    @property
    def fused(self) -> bool:
        """Whether one node computes the whole network."""
        return all([layer.fused for layer in self.layers])  # noqa: C419  # a list is faster

    def __call__(self, x: Sequence[Number]) -> Any:
        """Return the output for the inputs `x`, or where there are several, their list."""
        outputs = Forward(self.layers, x).outputs() if self.fused else self.plain(x)
        return outputs[0] if len(outputs) == 1 else outputs

    def plain(self, x: Sequence[Number]) -> list[Value]:
        """Return the outputs for the inputs `x`, made of ordinary nodes."""
        return _plain(self.layers, x)

    def parameters(self) -> list[Value]:
        """Return the parameters, layer by layer."""
        return [p for layer in self.layers for p in layer.parameters()]

    def _named_neurons(self) -> Iterator[tuple[str, Neuron]]:
        for k, layer in enumerate(self.layers):
            for name, neuron in layer._named_neurons():
                yield f"layers.{k}.{name}", neuron

    def save(self, path: str | Path) -> None:
        """Write sizes, activation and numbers as JSON, whole or not at all (see `saving`).

        Raises UsageError for layers that were put in by hand and `load` would not make.
        """
        activation = self.layers[0].activation if len(self.layers) > 1 else "linear"
        twin = MLP(self.sizes[0], self.sizes[1:], activation=activation)
        if repr(twin) != repr(self):
            raise UsageError("only an MLP as MLP(...) makes it can be saved; this one was changed")
        body = {"sizes": self.sizes, "activation": activation, "state": self.state_dict()}
        saving.write_model(Path(path), body)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the model that `save` wrote.

        Raises UsageError where there is no such file, ArtefactError where it is not whole.
        """
        saved = saving.read_model(Path(path))
        try:
            sizes, state = [_size(n) for n in saved["sizes"]], saved["state"]
            # Before anything of that size is made: each neuron must be in the file.
            found = {name: len(values) for name, values in state.items()}
            if sum(sizes[1:]) != len(found) or found != _lengths(sizes):
                raise ArtefactError(f"its numbers are not those of layers of sizes {sizes[:8]}")
            model = cls(sizes[0], sizes[1:], activation=saved["activation"])
            model.load_state_dict(state)
        except (MicrogradError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{path} holds no MLP: {error}") from None
        return model

    def __repr__(self) -> str:
        return f"MLP of [{', '.join(map(repr, self.layers))}]"


class Forward(Fan):
    """One node for all that fused `layers` compute from the inputs `x`."""

    __slots__ = ("_columns", "_layers", "_plain", "_trace", "_weights", "_x")

    def __init__(self, layers: Sequence[Layer], x: Sequence[Number]) -> None:
        super().__init__(0.0)
        self._op = "mlp"
        self._layers = layers
        self._weights = tuple([layer.weights for layer in layers if layer.weights])
        _check_inputs(x, len(self._weights[0].columns), "this network")
        self._x = x = tuple(x)  # the caller may put other things into theirs
        self._fan = tuple([v for v in x if isinstance(v, Value)])
        xs = [v.data if isinstance(v, Value) else number(v) for v in x]
        self._trace = [xs]  # the inputs, then the outputs of each layer
        for layer, weights in zip(layers, self._weights, strict=True):
            zs = weights.weigh(xs)
            if not math.isfinite(sum(zs)) and not all(map(math.isfinite, zs)):
                raise failure("mlp", f"w . x + b of a layer of {len(zs)}", "the result overflows")
            xs = layer.act.on_floats(zs)
            self._trace.append(xs)
        # A weight may change before `backward`, which needs it as it was here.
        self._columns = [weights.copy() for weights in self._weights]
        self._plain: list[Value] | None = None

    def stores(self) -> tuple[Weights, ...]:
        """Return the weights of the layers."""
        return self._weights

    def outputs(self) -> list[Value]:
        """Return a node for each output."""
        return [Output(self, i, y) for i, y in enumerate(self._trace[-1])]

    def _push(self) -> None:
        layers, trace = self._layers, self._trace
        gs = list(map(mul, self.grad, layers[-1].act.slopes(trace[-1])))
        self.grad = 0.0
        if not any(gs):
            return
        for k in range(len(layers) - 1, -1, -1):
            weights, xs = self._weights[k], trace[k]
            weights.collect(xs, gs)
            slopes = layers[k - 1].act.slopes(xs) if k else _ones(xs)
            columns = zip(slopes, self._columns[k])  # noqa: B905
            gs = [s and s * sum(map(mul, gs, w)) for s, w in columns]
        for v, g in zip(self._x, gs, strict=True):
            if isinstance(v, Value):
                v.grad += g

    def plain_outputs(self) -> list[Value]:
        """Return the outputs computed by ordinary operations, once."""
        if any(w.copy() is not c for w, c in zip(self._weights, self._columns, strict=True)):
            raise UsageError("the weights have changed since this output; compute it again")
        if self._plain is None:
            self._plain = _plain(self._layers, self._x)
        return self._plain


class Output(Fan):
    """Output i of a `Forward`."""

    __slots__ = ("_i",)
    _fan: tuple[Forward]

    def __init__(self, forward: Forward, i: int, y: float) -> None:
        super().__init__(y)
        self._op = "mlp"
        self._fan = (forward,)
        self._i = i

    def _push(self) -> None:
        forward = self._fan[0]
        if not forward.grad:  # a list with the gradient of each output, once there is one
            forward.grad = [0.0] * len(forward._trace[-1])
        forward.grad[self._i] += self.grad

    def plain(self) -> Value:
        """Return this output as computed by ordinary operations."""
        return self._fan[0].plain_outputs()[self._i]


def _plain(layers: Sequence[Layer], x: Sequence[Number]) -> list[Value]:
    """Return the outputs of `layers` for `x`, made of ordinary nodes."""
    outputs: Sequence[Number] = x
    for layer in layers:
        outputs = layer.plain(outputs)
    return list(outputs)  # type: ignore[arg-type]


def _lengths(sizes: Sequence[int]) -> dict[str, int]:
    """Return how many numbers each neuron of an MLP of these sizes has, by its name."""
    return {
        f"layers.{k}.neurons.{i}": n_in + 1
        for k, (n_in, n_out) in enumerate(pairwise(sizes))
        for i in range(n_out)
    }


def _check_inputs(x: Sequence[Number], n_inputs: int, who: str) -> None:
    """Raise DataError, with both sizes, unless `x` has `n_inputs` items."""
    try:
        count = len(x)
    except TypeError:
        raise DataError(
            f"{who} has {n_inputs} inputs, and got a {type(x).__name__}, {x!r}: use a list"
        ) from None
    if count != n_inputs:
        raise DataError(f"{who} has {n_inputs} inputs, and got {count}: {list(x)[:8]!r}")


def _size(n: int) -> int:
    """Return `n`. Raises UsageError unless it is a positive whole number."""
    whole = int(n) if isinstance(n, SupportsIndex) else 0  # NumPy's integers too
    if whole < 1:
        raise UsageError(f"{n!r} is no size of a layer: use a positive whole number")
    return whole


def _named(table: dict[str, Any], name: str, what: str) -> Any:
    """Return what `table` has under `name`. Raises UsageError listing the names."""
    if name not in table:
        raise UsageError(f"{what}={name!r} must be one of {', '.join(table)}")
    return table[name]
