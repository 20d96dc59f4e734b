"""Networks: karpathy's interface, fused layers equal to plain ones and to torch, and mistakes."""

import copy
import gc
import pickle
import random
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from micrograd import nn
from micrograd.engine import Value
from micrograd.errors import ArtefactError, DataError, NumericalError, UsageError
from micrograd.higher import grad
from micrograd.nn import MLP, Forward, Layer, Neuron, Parameter

POINT = [0.7, -1.3]
TORCH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": lambda z: z,
}


def both(sizes: list[int], **kwargs: Any) -> tuple[MLP, MLP]:
    """Return a fused and a plain network of the same random weights and biases."""
    rng = random.Random(5)
    fused, plain = (MLP(sizes[0], sizes[1:], fused=fused, **kwargs) for fused in (True, False))
    for p, q in zip(fused.parameters(), plain.parameters(), strict=True):
        p.data = q.data = rng.uniform(-1.0, 1.0)
    return fused, plain


def grads(model: MLP) -> list[float]:
    return [p.grad for p in model.parameters()]


def close(numbers: Any) -> Any:
    return pytest.approx(numbers, rel=1e-12, abs=1e-14)


def objective(outputs: Any) -> Value:
    """Return a curved function of one or more outputs, in which each counts differently."""
    rows = outputs if isinstance(outputs, list) else [outputs]
    total = Value(0.0)
    for k, out in enumerate(rows):
        total = total + (k + 1.5) * out * out + out
    return total


# ---- karpathy's interface


@pytest.mark.parametrize("fused", [True, False])
def test_the_interface_is_that_of_karpathys_micrograd(fused: bool) -> None:
    """Constructors by position, `w`, `b`, order of parameters, names, and the call."""
    random.seed(3)
    drawn = [random.uniform(-1, 1) for _ in range(2 * 3 + 3 * 1)]
    random.seed(3)
    model = MLP(2, [3, 1], fused=fused)
    first = model.layers[0].neurons[0]
    assert [w.data for w in first.w] == drawn[:2]
    assert first.b.data == 0.0
    assert first.parameters() == [*first.w, first.b]
    assert all(a is b for a, b in zip(model.parameters(), first.parameters(), strict=False))
    weights = [p.data for i, p in enumerate(model.parameters()) if i not in (2, 5, 8, 12)]
    assert weights == drawn  # neuron by neuron, the weights before the bias
    assert len(model.parameters()) == 13
    layer = "Layer of [ReLUNeuron(2), ReLUNeuron(2), ReLUNeuron(2)]"
    assert repr(model) == f"MLP of [{layer}, Layer of [LinearNeuron(3)]]"
    assert isinstance(model(POINT), Value)
    assert isinstance(MLP(2, [3, 2], fused=fused)(POINT), list)


def test_a_neuron_and_a_layer_alone_work_as_karpathys() -> None:
    """`nonlin` is their last argument by position; a layer of one neuron returns its output."""
    neuron = Neuron(2, False)
    neuron.w[0].data, neuron.w[1].data, neuron.b.data = 2.0, 3.0, -10.0
    assert neuron([1.0, 2.0]).data == -2.0
    assert repr(neuron) == "LinearNeuron(2)"
    assert Neuron(2)([0.0, 0.0]).data == 0.0
    assert repr(Layer(2, 1, False)) == "Layer of [LinearNeuron(2)]"
    assert not neuron.nonlin
    assert Neuron(2).nonlin
    assert isinstance(Layer(2, 1)(POINT), Value)
    outputs = Layer(2, 3)(POINT)
    assert isinstance(outputs, list)
    assert len(outputs) == 3


@pytest.mark.parametrize("fused", [True, False])
def test_zero_grad_sets_every_gradient_to_zero(fused: bool) -> None:
    """After a pass that left some of each layer."""
    model = MLP(2, [3, 1], activation="tanh", fused=fused)
    model(POINT).backward()
    assert all(grads(model))
    model.zero_grad()
    assert not any(grads(model))


# ---- fused is plain, only faster


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
@pytest.mark.parametrize("sizes", [[2, 1], [2, 3, 1], [3, 4, 5, 2]])
def test_fused_equals_plain(activation: str, sizes: list[int]) -> None:
    """In outputs and in the gradients of every parameter and input, over several points."""
    fused, plain = both(sizes, activation=activation)
    found: list[list[float]] = []
    for model in (fused, plain):
        rng = random.Random(9)
        points = [[Value(rng.gauss(0, 1)) for _ in range(sizes[0])] for _ in range(4)]
        outputs = [model(point) for point in points]
        loss = sum((objective(row) for row in outputs), Value(0.0))
        loss.backward()
        found.append([loss.data, *(v.grad for point in points for v in point), *grads(model)])
    assert found[0] == close(found[1])
    assert sum(g != 0.0 for g in found[0]) > len(found[0]) / 3  # not all dead


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_a_network_equals_torch_in_float64(activation: str) -> None:
    """Outputs, and the gradients of weights, biases and inputs."""
    sizes = [3, 4, 5, 2]
    model, _ = both(sizes, activation=activation)
    x = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64, requires_grad=True)
    h, theirs = x, list[Any]()
    for k, layer in enumerate(model.layers):
        table = [[p.data for p in neuron.parameters()] for neuron in layer.neurons]
        theirs.append(torch.tensor(table, dtype=torch.float64, requires_grad=True))
        h = theirs[-1][:, :-1] @ h + theirs[-1][:, -1]
        h = TORCH[activation](h) if k < len(sizes) - 2 else h
    loss: Any = 1.5 * h[0] ** 2 + h[0] + 2.5 * h[1] ** 2 + h[1]
    loss.backward()
    inputs = [Value(v) for v in x.tolist()]
    outputs = model(inputs)
    objective(outputs).backward()
    assert [y.data for y in outputs] == close(h.tolist())
    assert x.grad is not None
    assert [v.grad for v in inputs] == close(x.grad.tolist())
    flat = [g for table in theirs for g in table.grad.flatten().tolist()]
    assert grads(model) == close(flat)


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_a_layer_alone_is_fused_and_equals_plain(activation: str) -> None:
    """With its activation, unlike the last layer of an MLP."""
    layer = Layer(2, 3, activation=activation, rng=random.Random(1))
    found = []
    for outputs in (layer(POINT), layer.plain(POINT)):
        objective(outputs).backward()
        assert isinstance(outputs, list)
        found.append([y.data for y in outputs] + [p.grad for p in layer.parameters()])
        layer.zero_grad()
    assert found[0] == close(found[1])
    assert any(found[0][3:])


def test_inputs_are_values_numbers_or_rows_of_numpy() -> None:
    """The same Value twice gets both gradients; a result can be an input; numbers get none."""
    fused, plain = both([2, 3, 1], activation="tanh")
    a, b = Value(0.4), Value(0.4)
    fused([a, a]).backward()
    plain([b, b]).backward()
    assert a.grad == close(b.grad)
    assert a.grad != 0.0
    fused([a.exp(), 1]).backward()
    plain([b.exp(), 1]).backward()
    assert a.grad == close(b.grad)
    assert grads(fused) == close(grads(plain))
    expected = plain(POINT).data
    kinds: list[Any] = [np.array(POINT), tuple(POINT), [Value(POINT[0]), np.float64(POINT[1])]]
    for kind in kinds:
        assert fused(kind).data == close(expected)
        assert plain(kind).data == close(expected)
    row: Any = np.array(POINT, dtype=np.float32)
    assert fused(row).data == pytest.approx(expected, rel=1e-6)
    row = np.array([1, 2])
    assert fused(row).data == close(plain([1, 2]).data)


def test_a_network_may_feed_a_network() -> None:
    """Also itself, so that one layer is used twice in a pass."""
    fused, plain = both([2, 3, 2], activation="tanh")
    for model in (fused, plain):
        objective(model(model(POINT))).backward()
    assert grads(fused) == close(grads(plain))


# ---- gradients add up


def test_case_02_backward_twice_through_a_network_doubles_its_gradients() -> None:
    """As PyTorch: each pass adds the same; karpathy's rule would give three times as much."""
    fused, plain = both([2, 3, 1], activation="tanh")
    x = Value(0.3)
    out = fused([x, 1.0]) ** 2
    out.backward()
    once = [x.grad, *grads(fused)]
    out.backward()
    assert [x.grad, *grads(fused)] == close([2 * g for g in once])
    plain([0.3, 1.0]).backward()
    assert any(grads(plain))


def test_case_02_two_losses_share_the_fused_forward_pass() -> None:
    """Each passes back on its own; together they leave the gradients of their sum."""
    fused, plain = both([2, 3, 2], activation="tanh")
    for model in (fused, plain):
        first, second = model(POINT)
        (first * second).backward()
        second.exp().backward()
        first.backward()
    assert grads(fused) == close(grads(plain))
    summed, _ = both([2, 3, 2], activation="tanh")
    first, second = summed(POINT)
    (first * second + second.exp() + first).backward()
    assert grads(fused) == close(grads(summed))


def test_a_parameter_reached_directly_too_gets_both_parts() -> None:
    """An L2 penalty reads the parameters that the fused node also uses."""
    fused, plain = both([2, 3, 1], activation="tanh")
    for model in (fused, plain):
        for _ in range(2):
            loss = model(POINT) ** 2 + 0.1 * sum(p * p for p in model.parameters())
            loss.backward()
    assert grads(fused) == close(grads(plain))
    assert all(grads(fused))


def test_a_weight_that_changes_after_the_forward_pass_does_not_change_its_gradients() -> None:
    """As in the plain network, whose nodes hold the slopes of the moment they were made."""
    fused, plain = both([2, 3, 1], activation="tanh")
    found = []
    for model in (fused, plain):
        x = [Value(v) for v in POINT]
        out = model(x)
        for p in model.parameters():
            p.data *= 2.0
        out.backward()
        found.append([*(v.grad for v in x), *grads(model)])
        out = model(x)  # and the next pass is with the new weights
        out.backward()
        found[-1] += [out.data, *grads(model)]
    assert found[0] == close(found[1])
    out = fused(POINT)
    fused.parameters()[0].data = 0.0
    with pytest.raises(UsageError, match=r"weights have changed since .* compute it again"):
        grad(out, fused.parameters())


# ---- when a pass fails


def test_case_03_a_pass_that_overflows_changes_no_gradient() -> None:
    """It is an error, and the next pass is right."""
    model, _ = both([2, 3, 1], activation="linear")
    model(POINT).backward()
    before = grads(model)
    for point, factor in ((POINT, 1e200), ([1e200, 1.0], 1e120)):
        out = model(point)
        loss = (out - out.data) * factor * factor  # 0, with a gradient that is not
        with pytest.raises(NumericalError, match=r"not finite|overflows"):
            loss.backward()
        assert grads(model) == before
    model(POINT).backward()
    assert grads(model) == close([2 * g for g in before])


def test_case_03_gradients_that_overflow_over_several_passes_are_an_error() -> None:
    """Each pass alone is fine; the gradients stay those of the first."""
    fused, plain = both([1, 1])
    for model in (fused, plain):
        loss = model([1e308]) * 1.5
        loss.backward()
        before = grads(model)
        with pytest.raises(NumericalError, match=r"overflows|a fused network .*not finite"):
            loss.backward()
        assert grads(model) == before == [1.5e308, 1.5]


def test_numbers_whose_sum_would_overflow_are_fine_one_by_one() -> None:
    """A layer's outputs and gradients may each be near the largest float."""
    for model in both([1, 2], activation="linear"):
        for p, x in zip(model.parameters(), (1.0, 0.0, 1.0, 0.0), strict=True):
            p.data = x
        first, second = model([1e308])
        assert [first.data, second.data] == [1e308, 1e308]
        model.parameters()[0].data = model.parameters()[2].data = 1e-300
        first, second = model([1e308])
        (first + second).backward()
        assert grads(model) == [1e308, 1.0, 1e308, 1.0]


def test_case_03_a_forward_pass_that_overflows_is_an_error() -> None:
    """It says where, in the user's file."""
    model = MLP(1, [2, 1], init="he", rng=random.Random(0))
    model.parameters()[0].data = 1e200
    with pytest.raises(NumericalError, match=r"test_nn.py:\d+: the result overflows"):
        model([1e200])


def test_ctrl_c_anywhere_in_backward_leaves_a_network_as_it_was(
    interrupt: Callable[[Callable[[], None], int], bool],
) -> None:
    """Gradients of parameters and inputs; the next pass is right. Tried at each line it runs.

    Except the very last, which write the sums of all layers one after another.
    """
    model = MLP(2, [2, 1], activation="tanh", rng=random.Random(0))
    x = Value(0.5)
    loss = model([x, 1.0]) * model([x, 2.0]) + model.parameters()[0] ** 2
    loss.backward()
    before = [x.grad, *grads(model)]
    tried = 0
    while interrupt(loss.backward, tried + 1):
        tried += 1
        assert [x.grad, *grads(model)] == before, f"interrupted at line {tried}"
    assert tried > 300
    assert [x.grad, *grads(model)] == close([2 * g for g in before])


# ---- higher derivatives


def test_gradients_as_values_go_through_the_fused_network() -> None:
    """`grad`, `grad` of it, and `backward(create_graph=True)`, all as the plain network's."""
    fused, plain = both([2, 3, 2], activation="tanh")
    found = []
    for model in (fused, plain):
        x = [Value(v) for v in POINT]
        loss = objective(model(x))
        inputs = [*x, *model.parameters()]
        first = grad(loss, inputs)
        second = grad(sum((g * g for g in first), Value(0.0)), inputs)
        assert not any(grads(model))
        loss.backward(create_graph=True)
        assert all(isinstance(g, Value) for g in grads(model))
        values: list[Any] = [*first, *second, *grads(model)]
        found.append([v.data for v in values])
    assert found[0] == close(found[1])
    assert all(found[0])


# ---- copies


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_network_is_whole_and_its_own(make: Callable[[MLP], MLP], fused: bool) -> None:
    """Numbers and gradients come along; its parameters are those that it computes with."""
    model = MLP(2, [3, 1], activation="tanh", fused=fused, rng=random.Random(2))
    model(POINT).backward()
    state, out = model.state_dict(), model(POINT).data
    twin = make(model)
    assert (twin.state_dict(), grads(twin), repr(twin)) == (state, grads(model), repr(model))
    for p in twin.parameters():
        p.data, p.grad = 2.0 * p.data, 0.0
    twin(POINT).backward()
    assert (model.state_dict(), model(POINT).data) == (state, out)
    same = MLP(2, [3, 1], activation="tanh", fused=False)
    same.load_state_dict(twin.state_dict())
    same(POINT).backward()
    assert grads(twin) == close(grads(same))
    assert twin(POINT).data == close(same(POINT).data)


# ---- mistakes


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("x", [[], [1.0], [1.0, 2.0, 3.0], np.zeros(5)])
def test_case_04_a_wrong_number_of_inputs_names_both_sizes(x: Any, fused: bool) -> None:
    """Ragged or empty rows are refused by a network, a layer and a neuron."""
    models: list[Any] = [MLP(2, [3, 1], fused=fused), Layer(2, 3, fused=fused), Neuron(2)]
    for model in models:
        with pytest.raises(DataError, match=rf"has 2 inputs, and got {len(x)}: \["):
            model(x)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (3.0, "has 2 inputs, and got a float, 3.0: use a list"),
        (None, "got a NoneType"),
        (Value(1.0), "got a Value"),
        ((v for v in POINT), "got a generator"),
        ([[1.0, 2.0], [3.0, 4.0]], "of type list; a number is needed"),
        (np.zeros((2, 2)), "of type ndarray; a number is needed"),
        ("ab", "of type str; a number is needed"),
        ([None, 1.0], "of type NoneType; a number is needed"),
        ([1j, 1.0], "of type complex; a number is needed"),
        ([float("nan"), 1.0], "nan is no finite number; clean the data first"),
        ([float("inf"), 1.0], "inf is no finite number"),
        (np.array([1.0, np.nan]), "nan is no finite number"),
    ],
)
def test_inputs_that_are_no_numbers_are_refused_in_one_line(
    x: Any, message: str, fused: bool
) -> None:
    """The message names the value and what is needed."""
    with pytest.raises(DataError, match=message) as caught:
        MLP(2, [3, 1], fused=fused)(x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_outputs", [[3, 1], [1]])
def test_unknown_names_list_the_known_ones(n_outputs: list[int]) -> None:
    """Also where the only layer is the last, which has no activation."""
    with pytest.raises(UsageError, match="activation='gelu' must be one of relu, tanh, sigmoid, l"):
        MLP(2, n_outputs, activation="gelu")
    with pytest.raises(UsageError, match="init='normal' must be one of uniform, he, xavier"):
        MLP(2, n_outputs, init="normal")
    with pytest.raises(UsageError, match="activation='gelu'"):
        Neuron(2, False, activation="gelu")


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", None])
def test_a_size_that_is_no_positive_whole_number_is_refused(size: Any) -> None:
    """Of inputs, of a layer, of a neuron."""
    makers: list[Callable[[], Any]] = [
        lambda: MLP(size, [1]),
        lambda: MLP(2, [size]),
        lambda: Layer(2, size),
        lambda: Neuron(size),
        lambda: Layer(size, 2, fused=False),
    ]
    for make in makers:
        with pytest.raises(UsageError, match="is no size of a layer: use a positive whole number"):
            make()


def test_a_network_needs_layers() -> None:
    """Neither none at all nor a number in place of the list."""
    wrong: list[Any] = [[], 3]
    for n_outputs in wrong:
        with pytest.raises(UsageError, match="an MLP needs a list of layer sizes"):
            MLP(2, n_outputs)


def test_sizes_may_be_numpys() -> None:
    """They are kept as plain integers, which JSON knows."""
    sizes: Any = list(np.array([3, 1]))
    model = MLP(sizes[0], sizes)
    assert model.sizes == [3, 3, 1]
    assert {type(n) for n in model.sizes} == {int}


def test_a_weight_cannot_be_replaced_silently() -> None:
    """A fused layer would not see it; its number can be set, and must be one."""
    model = MLP(2, [3, 1])
    neuron: Any = model.layers[0].neurons[0]
    with pytest.raises(UsageError, match=r"are fixed; .* neuron.w\[i\].data = ..."):
        neuron.w[0] = Value(1.0)
    for name in ("w", "b"):
        with pytest.raises(UsageError, match="are fixed"):
            setattr(neuron, name, Value(1.0))
    with pytest.raises(UsageError, match="are fixed"):
        model.layers[0].neurons[0] = neuron  # type: ignore[index]
    with pytest.raises(AttributeError):
        neuron.w.pop()
    assert neuron.w + [neuron.b] == neuron.parameters()  # noqa: RUF005  # as programs write it
    alone = Neuron(1)
    alone.w, alone.b = [Value(2.0)], Value(1.0)
    assert alone([3.0]).data == 7.0
    with pytest.raises(DataError, match="nan is no finite number"):
        neuron.w[0].data = float("nan")
    before = model(POINT).data
    model.layers[1].neurons[0].b.data += 1.5
    assert model(POINT).data == close(before + 1.5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("layers.1.neurons.0"), ArtefactError, "only one .*'layers.1.neurons.0'"),
        (lambda s: s.update(more=[1.0]), ArtefactError, "another model: only one .*'more'"),
        (lambda s: s["layers.1.neurons.0"].pop(), ArtefactError, "has 3 numbers, the model 4"),
        (lambda s: s["layers.1.neurons.0"].append(1.0), ArtefactError, "5 numbers, the model 4"),
        (
            lambda s: s.update({"layers.1.neurons.0": [1.0, 2.0, 3.0, "x"]}),
            DataError,
            "'x' is of type str",
        ),
        (
            lambda s: s.update({"layers.1.neurons.0": [1.0, 2.0, 3.0, float("nan")]}),
            DataError,
            "nan is no finite",
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    change: Callable[[Any], Any], error: type[Exception], message: str, fused: bool
) -> None:
    """The message names the neuron, or the number."""
    model = MLP(2, [3, 1], fused=fused)
    before = copy.deepcopy(model.state_dict())
    state = {name: [x + 1.0 for x in row] for name, row in before.items()}
    change(state)
    with pytest.raises(error, match=message):
        model.load_state_dict(state)
    assert model.state_dict() == before


def test_a_state_goes_from_plain_to_fused_and_back() -> None:
    """It has a row for each neuron: the weights, then the bias; taking it copies numbers."""
    fused, plain = both([2, 3, 1])
    assert fused.state_dict() == plain.state_dict()
    assert list(fused.state_dict()) == [
        "layers.0.neurons.0",
        "layers.0.neurons.1",
        "layers.0.neurons.2",
        "layers.1.neurons.0",
    ]
    other = MLP(2, [3, 1])
    other.load_state_dict(plain.state_dict())
    assert other(POINT).data == close(plain(POINT).data)
    assert Neuron(2).state_dict().keys() == {"neuron"}
    assert Layer(2, 2).state_dict().keys() == {"neurons.0", "neurons.1"}


# ---- beginnings and ends


def test_no_network_node_outlives_its_names() -> None:
    """Without Python's collector: after a pass, a higher derivative, and a failed pass."""
    gc.collect()
    gc.disable()
    try:
        model = MLP(2, [4, 2], activation="tanh")
        x = [Value(v) for v in POINT]
        before = sum(issubclass(type(one), Value) for one in gc.get_objects())
        for _ in range(3):
            outputs = model(x)
            objective(outputs).backward()
            first = grad(objective(outputs), x)
            with pytest.raises(NumericalError):
                (outputs[0] * 0.0).sqrt().backward()
        del outputs, first
        assert sum(issubclass(type(one), Value) for one in gc.get_objects()) == before
        assert not any(type(one) is Forward for one in gc.get_objects())
    finally:
        gc.enable()
    assert isinstance(model.parameters()[0], Parameter)


@pytest.mark.parametrize(
    ("init", "deviation", "largest"),
    [
        ("uniform", 1 / 3**0.5, 1.0),
        ("he", (2 / 200) ** 0.5, 1.0),  # He et al. (2015), eq. 10
        ("xavier", (2 / 300) ** 0.5, (6 / 300) ** 0.5),  # Glorot and Bengio (2010), eq. 12 and 16
    ],
)
def test_first_weights_have_the_published_spread(
    init: str, deviation: float, largest: float
) -> None:
    """Mean 0 and the deviation of the paper over 20,000 weights; biases are 0."""
    layer = Layer(200, 100, init=init, rng=random.Random(0))
    weights = [w.data for neuron in layer.neurons for w in neuron.w]
    assert statistics.fmean(weights) == pytest.approx(0.0, abs=4 * deviation / 20_000**0.5)
    assert statistics.pstdev(weights) == pytest.approx(deviation, rel=0.02)
    assert max(map(abs, weights)) <= largest
    assert not any(neuron.b.data for neuron in layer.neurons)


def test_first_weights_follow_the_generator_that_is_passed() -> None:
    """And else Python's global one, as karpathy's do; each network of a seed is the same."""
    one, two, other = (MLP(2, [3, 1], rng=random.Random(s)) for s in (1, 1, 2))
    assert one.state_dict() == two.state_dict() != other.state_dict()
    random.seed(7)
    one = MLP(2, [3, 1])
    random.seed(7)
    assert one.state_dict() == MLP(2, [3, 1], fused=False).state_dict()


def test_signals_keep_their_size_through_ten_he_layers() -> None:
    """What He's rule is for: ReLU networks neither explode nor die with depth."""
    model = MLP(50, [50] * 10, init="he", rng=random.Random(1))
    rng = random.Random(2)
    outputs = [y.data for _ in range(20) for y in model([rng.gauss(0, 1) for _ in range(50)])]
    assert 0.2 < statistics.pstdev(outputs) < 5.0
    assert all(len(layer.neurons) == 50 for layer, _ in pairwise(model.layers))


def test_what_the_caller_does_to_its_inputs_later_does_not_matter() -> None:
    """A fused network keeps what it was given."""
    model, x = MLP(2, [3, 1]), [Value(0.5), Value(-0.25)]
    model.layers[0].neurons[0].b.data = 3.0  # not all neurons are off
    first, output = x[0], model(x)
    x[0] = Value(9.0)
    x.pop()
    output.backward()
    assert first.grad != 0.0


def test_a_layer_put_in_by_hand_is_computed_and_not_saved(tmp_path: Path) -> None:
    """`load` could not make it again."""
    model = MLP(2, [3, 1])
    model.layers[1] = Layer(3, 1, activation="tanh", fused=False)
    assert not model.fused
    assert abs(model(POINT).data) < 1.0
    with pytest.raises(UsageError, match="this one was changed"):
        model.save(tmp_path / "m.json")


def test_parameters_take_a_programs_own_attributes() -> None:
    """Such as momentum."""
    p: Any = MLP(2, [1]).parameters()[0]
    p.velocity = 0.5
    assert p.velocity == 0.5


def test_karpathys_argument_names_are_ours() -> None:
    """`nin`, `nout` and `nouts` by keyword."""
    assert len(MLP(nin=2, nouts=[3, 1]).parameters()) == 13
    assert len(Layer(nin=2, nout=3).parameters()) == 9
    assert len(Neuron(nin=2).parameters()) == 3
