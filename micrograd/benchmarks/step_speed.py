"""Time a training step of karpathy's demo, and a chain of a million nodes, on several engines.

    python micrograd/benchmarks/step_speed.py --rounds 7 --out micrograd/results

The step: MLP(2, [16, 16, 1]), scikit-learn's 100 moons points, max-margin loss with an L2 penalty,
from the same weights: forward, loss, backward, update. Every engine runs in a process of its own,
turn by turn, as a heap full of other things makes the garbage collector slower. Reported are CPU
seconds of one thread, the median over rounds (fastest to slowest), with the collector on, at its
default, and off; and the peak of memory that Python and NumPy allocate in one step.

`closures` is the paper baseline (closure_engine.py); `Value` runs the same network code as it on
our Values; `nn.MLP plain` and `nn.MLP` are ours; `autograd` and `torch` compute with whole arrays.
The losses of all must agree to 12 digits, or the script stops.
"""

import argparse
import gc
import importlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

ENGINES = ("closures", "Value", "nn.MLP plain", "nn.MLP", "autograd", "torch")
SEED = 1337  # of karpathy's demo: NumPy's for the points, Python's for the weights
ALPHA = 1e-4
STEPS = 6

Step = Callable[[int], float]
"""Makes step k and returns the loss before it."""


def learning_rate(k: int) -> float:
    """Return the demo's learning rate in step k."""
    return 1.0 - 0.9 * k / 100


def moons() -> tuple[list[list[float]], list[int]]:
    """Return the demo's points (100, 2) and labels -1 or 1."""
    import numpy as np
    from sklearn.datasets import make_moons

    np.random.seed(SEED)  # noqa: NPY002  # the demo's, which gives the demo's points
    points, labels = make_moons(n_samples=100, noise=0.1)
    return points.tolist(), (2 * labels - 1).tolist()


def scalar_step(make: Any, value: Any, points: list[list[float]], labels: list[int]) -> Step:
    """Return the step on a scalar engine, written as in the demo."""
    random.seed(SEED)
    model = make()

    def step(k: int) -> float:
        scores = [model([value(x) for x in row]) for row in points]
        losses = [(1 + -y * score).relu() for y, score in zip(labels, scores, strict=True)]
        data_loss = sum(losses) * (1.0 / len(losses))
        penalty = ALPHA * sum(p * p for p in model.parameters())
        total = data_loss + penalty
        for p in model.parameters():
            p.grad = 0.0
        total.backward()
        for p in model.parameters():
            p.data -= learning_rate(k) * p.grad
        return float(total.data)

    return step


def weights() -> list[tuple[list[list[float]], list[float]]]:
    """Return the demo's initial weights (n_out, n_in) and biases (n_out) of each layer."""
    random.seed(SEED)
    sizes = ((2, 16), (16, 16), (16, 1))
    return [
        ([[random.uniform(-1, 1) for _ in range(a)] for _ in range(b)], [0.0] * b) for a, b in sizes
    ]


def autograd_step(points: list[list[float]], labels: list[int]) -> Step:
    """Return the step by HIPS autograd on whole arrays."""
    import autograd
    import autograd.numpy as np

    x, y = np.array(points), np.array(labels)
    params = [np.array(p) for layer in weights() for p in layer]

    def objective(params: list[Any]) -> Any:
        h = x
        for i in range(0, 6, 2):
            h = h @ params[i].T + params[i + 1]
            h = np.maximum(h, 0.0) if i < 4 else h
        penalty = sum(np.sum(p * p) for p in params)
        return np.mean(np.maximum(1.0 - y * h[:, 0], 0.0)) + ALPHA * penalty

    both = autograd.value_and_grad(objective)

    def step(k: int) -> float:
        loss, grads = both(params)
        for p, g in zip(params, grads, strict=True):
            p -= learning_rate(k) * g
        return float(loss)

    return step


def torch_step(points: list[list[float]], labels: list[int]) -> Step:
    """Return the step by PyTorch on whole tensors."""
    import torch

    torch.set_num_threads(1)
    x = torch.tensor(points, dtype=torch.float64)
    y = torch.tensor(labels, dtype=torch.float64)
    params = [
        torch.tensor(p, dtype=torch.float64, requires_grad=True) for la in weights() for p in la
    ]

    def step(k: int) -> float:
        h = x
        for i in range(0, 6, 2):
            h = torch.addmm(params[i + 1], h, params[i].T)
            h = h.relu() if i < 4 else h
        penalty = sum((p * p).sum() for p in params)
        loss = (1.0 - y * h[:, 0]).relu().mean() + ALPHA * penalty
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p -= learning_rate(k) * g
        return float(loss)

    return step


def step_of(engine: str, points: list[list[float]], labels: list[int]) -> Step:
    """Return the step of `engine`; only what it needs is imported."""
    if engine == "autograd":
        return autograd_step(points, labels)
    if engine == "torch":
        return torch_step(points, labels)
    closure_engine = importlib.import_module("closure_engine")  # beside this file

    if engine == "closures":
        value: Any = closure_engine.Value
        return scalar_step(lambda: closure_engine.MLP(2, [16, 16, 1]), value, points, labels)
    from micrograd import nn
    from micrograd.engine import Value

    if engine == "Value":
        closure_engine.Value = Value  # type: ignore[attr-defined]
        return scalar_step(lambda: closure_engine.MLP(2, [16, 16, 1]), Value, points, labels)
    fused = engine == "nn.MLP"
    return scalar_step(lambda: nn.MLP(2, [16, 16, 1], fused=fused), Value, points, labels)


def work(engine: str, collector: bool) -> None:
    """Run one engine in this process and print its figures as JSON."""
    points, labels = json.load(sys.stdin)
    if engine.startswith("chain"):
        print(json.dumps(chain(engine)))
        return
    step = step_of(engine, points, labels)
    if not collector:
        gc.disable()
    losses, seconds, wall = [], [], []
    for k in range(STEPS):
        start, start_wall = time.process_time(), time.perf_counter()
        losses.append(step(k))
        seconds.append(time.process_time() - start)
        wall.append(time.perf_counter() - start_wall)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    step(STEPS)
    peak = tracemalloc.get_traced_memory()[1] - before
    figures = {"cpu": statistics.median(seconds[1:]), "wall": statistics.median(wall[1:])}
    print(json.dumps({**figures, "losses": losses, "peak_bytes": peak}))


def chain(engine: str) -> dict[str, float | str]:
    """Build x + 1 + 1 ..., a million nodes; go back; drop it. Recursion can't, and says so."""
    closure_engine = importlib.import_module("closure_engine")
    from micrograd.engine import Value

    kind: Any = closure_engine.Value if engine == "chain closures" else Value
    n = 1_000_000
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    x = y = kind(1.0)
    for _ in range(n // 10):
        y = y + 1.0
    per_node = (tracemalloc.get_traced_memory()[0] - before) / (n // 10)
    tracemalloc.stop()
    start = time.process_time()
    x = y = kind(1.0)
    for _ in range(n):
        y = y + 1.0
    forward = time.process_time()
    try:
        y.backward()
    except RecursionError:
        return {
            "bytes_per_node": per_node,
            "forward": forward - start,
            "backward": "RecursionError",
        }
    backward = time.process_time()
    del y
    freed = time.process_time()
    return {
        "bytes_per_node": per_node,
        "forward": forward - start,
        "backward": backward - forward,
        "free": freed - backward,
        "gradient": x.grad,
    }


def measure(engine: str, collector: bool, data: str) -> dict[str, Any]:
    """Return the figures of one engine, run in a process of its own."""
    command = [sys.executable, __file__, "--worker", engine, *([] if collector else ["--no-gc"])]
    done = subprocess.run(command, input=data, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def check(losses: dict[str, list[float]]) -> None:
    """Stop unless the losses of all engines agree to 12 digits."""
    for engine, found in losses.items():
        for ours, theirs in zip(found, losses["closures"], strict=True):
            if abs(ours - theirs) > 1e-12 * abs(theirs):
                raise SystemExit(f"{engine}: loss {ours!r}, closures: {theirs!r}")


def spread(values: list[float], digits: int) -> str:
    """Return `median (least to most)`."""
    middle, least, most = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return f"{middle} ({least} to {most})"


def main() -> None:
    """Measure all engines, print the tables, write them where `--out` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for step_speed.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--no-gc", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, not args.no_gc)
        return
    data = json.dumps(moons())
    runs: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for _ in range(args.rounds):
        for collector in (True, False):
            for engine in ENGINES:
                runs.setdefault((engine, collector), []).append(measure(engine, collector, data))
            check({engine: runs[engine, collector][-1]["losses"] for engine in ENGINES})
    results = [row(engine, runs, args.rounds) for engine in ENGINES]
    print(f"losses of all engines agree to 12 digits: {runs['Value', True][0]['losses']}")
    print(f"{'one step':14}{'CPU ms':>24}{'times faster':>26}{'collector off':>26}{'KiB':>12}")
    for r in results:
        print(
            f"{r['engine']:14}{r['cpu_ms']:>24}{r['times_faster']:>26}"
            f"{r['times_faster_collector_off']:>26}{r['peak_bytes'] / 1024:12.0f}"
        )
    chains = {name: measure(f"chain {name}", True, data) for name in ("closures", "Value")}
    for name, figures in chains.items():
        print(f"chain of 1,000,000 nodes, {name}: {figures}")
    if args.out:
        about = {
            "command": "python micrograd/benchmarks/step_speed.py " + " ".join(sys.argv[1:]),
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_average": os.getloadavg(),
            "losses": runs["Value", True][0]["losses"],
            "results": results,
            "chains": chains,
        }
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / "step_speed.json"
        path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def row(
    engine: str, runs: dict[tuple[str, bool], list[dict[str, Any]]], rounds: int
) -> dict[str, Any]:
    """Return one engine's line: times, and per round how many times faster than closures it was."""

    def times(collector: bool) -> list[float]:
        pairs = zip(runs["closures", collector], runs[engine, collector], strict=True)
        return [theirs["cpu"] / ours["cpu"] for theirs, ours in pairs]

    on = runs[engine, True]
    return {
        "engine": engine,
        "rounds": rounds,
        "cpu_ms": spread([1e3 * run["cpu"] for run in on], 2),
        "wall_ms": spread([1e3 * run["wall"] for run in on], 2),
        "cpu_ms_collector_off": spread([1e3 * run["cpu"] for run in runs[engine, False]], 2),
        "times_faster": spread(times(True), 1),
        "times_faster_collector_off": spread(times(False), 1),
        "peak_bytes": statistics.median(run["peak_bytes"] for run in on),
        "peak_times_less": runs["closures", True][0]["peak_bytes"] / on[0]["peak_bytes"],
    }


if __name__ == "__main__":
    main()
