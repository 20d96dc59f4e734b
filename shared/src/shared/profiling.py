"""Where the time goes: step phases, FLOPs and MFU, memory, traces, and fair comparisons.

MFU, model FLOPs utilisation, is the share of the device's peak that the model's own operations
use: FLOPs of the model per step / seconds per step / peak (Chowdhery et al., 2022, PaLM, app. B).
One multiply-add counts as two FLOPs; recomputed activations do not count.
"""

import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shared import files

PHASES = ("forward", "backward", "optimizer", "data")


@dataclass(frozen=True)
class Peak:
    """The most FLOP/s that a device can do, and where that figure is from."""

    value: float
    source: str


class StepTimer:
    """Say which part of a training step takes how long.

        timer.start()
        batch = next_batch();        timer.mark("data")      # the time since the last mark
        loss = model(batch);         timer.mark("forward")
        loss.backward();             timer.mark("backward")
        optimizer.step();            timer.mark("optimizer")
        timer.end()                                          # the rest is idle

    A phase may be marked several times in a step. A GPU works behind the program's back, so marks
    wait for it during the first `profiled_steps`, where the split must be true, and cost nothing
    of the kind later. The split leaves out the first `warmup_steps`, which allocate and compile.
    A mark takes about 0.2 microseconds.

    Args:
        device: where the step runs.
        tokens_per_step: of this process and its peers together; 0 leaves tokens/s out.
        flops_per_step: model FLOPs of this process's share of a step; 0 leaves FLOP/s out.
        peak: of this process's device; None leaves MFU out.
        profiled_steps: steps until `line` is due.
        warmup_steps: steps left out of the split.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        tokens_per_step: int = 0,
        flops_per_step: float = 0,
        peak: Peak | None = None,
        profiled_steps: int = 20,
        warmup_steps: int = 2,
    ) -> None:
        self.device = device
        self.tokens_per_step, self.flops_per_step, self.peak = tokens_per_step, flops_per_step, peak
        self.profiled_steps = profiled_steps
        self.warmup_steps = min(warmup_steps, profiled_steps - 1)
        self.steps = 0
        self._asynchronous = device.type in ("cuda", "mps", "xpu")
        self._waits = self._asynchronous and profiled_steps > 0
        self._spent: dict[str, int] = {}  # ns of each phase
        self._begin = self._last = 0
        self._window_steps = self._window_ns = 0

    def start(self) -> None:
        """Begin a step."""
        self._begin = self._last = time.perf_counter_ns()

    def mark(self, phase: str) -> None:
        """Give the time since the last mark, or the start, to a phase."""
        if self._waits:
            synchronize(self.device)
        now = time.perf_counter_ns()
        self._spent[phase] = self._spent.get(phase, 0) + now - self._last
        self._last = now

    def end(self) -> None:
        """End the step; what no mark has claimed is idle."""
        self.mark("idle")
        self.steps += 1
        self._window_steps += 1
        self._window_ns += self._last - self._begin
        if self.steps == self.warmup_steps:
            self._spent = {}
        if self.steps == self.profiled_steps:
            self._waits = False
            self._profile = dict(self._spent)

    @property
    def line_due(self) -> bool:
        """Whether the step that just ended completes the profile: the time to print `line`."""
        return self.steps == self.profiled_steps

    def split(self) -> dict[str, float]:
        """Return the seconds that each phase took in a profiled step, in the order of size.

        Before `profiled_steps` have passed, of the steps so far.
        """
        steps = min(self.steps, self.profiled_steps)
        steps -= self.warmup_steps if self.steps >= self.warmup_steps else 0
        spent = self._profile if self.steps >= self.profiled_steps else self._spent
        order = sorted(spent, key=lambda phase: -spent[phase])
        return {phase: spent[phase] / 1e9 / max(steps, 1) for phase in order}

    def line(self) -> str:
        """Say in one line where the time of a step goes, and how fast that is.

        `step 41.2 ms: forward 35 %, backward 52 %, ... | 37,300 tok/s | 62 GFLOP/s (MFU 0.64 of
        97 GFLOP/s, measured matmul peak)`
        """
        split = self.split()
        seconds = sum(split.values())
        if not seconds:
            return f"too few steps to say where the time goes ({self.steps})"
        shares = ", ".join(f"{phase} {part / seconds:.0%}" for phase, part in split.items())
        parts = [f"step {seconds * 1e3:.3g} ms: {shares.replace('%', ' %')}"]
        if self.tokens_per_step:
            parts.append(f"{self.tokens_per_step / seconds:,.0f} tok/s")
        if self.flops_per_step:
            rate = self.flops_per_step / seconds
            mfu = ""
            if self.peak is not None:
                peak = format_flops(self.peak.value)
                mfu = f" (MFU {rate / self.peak.value:.2f} of {peak}/s, {self.peak.source})"
            parts.append(f"{format_flops(rate)}/s{mfu}")
        return " | ".join(parts)

    def window(self) -> dict[str, float]:
        """Return the speed of the steps since the last call, by the names of the metrics.

        `step_ms`, and where known `tok_per_sec` and `mfu` (0 to 1). What lies between steps, such
        as an evaluation, is not counted. Empty if no step has ended.
        """
        if not self._window_steps:
            return {}
        if self._asynchronous:  # the GPU may still be busy with steps that the program has left
            before = time.perf_counter_ns()
            synchronize(self.device)
            self._window_ns += time.perf_counter_ns() - before
        seconds = self._window_ns / 1e9 / self._window_steps
        self._window_steps = self._window_ns = 0
        speed = {"step_ms": seconds * 1e3}
        if self.tokens_per_step:
            speed["tok_per_sec"] = self.tokens_per_step / seconds
        if self.flops_per_step and self.peak is not None:
            speed["mfu"] = self.flops_per_step / seconds / self.peak.value
        return speed


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "xpu":
        torch.xpu.synchronize(device)


# -- FLOPs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flops:
    """A count of floating-point operations that shows what it is the sum of.

    `Flops({"mlp": 8e9, "attention": 4e9}).total` is 12e9; `3 *` it counts a training step, whose
    backward pass does each product twice, once for the inputs and once for the weights.
    """

    terms: Mapping[str, float]

    @property
    def total(self) -> float:
        """The sum of the terms."""
        return float(sum(self.terms.values()))

    def __mul__(self, times: float) -> "Flops":
        return Flops({name: count * times for name, count in self.terms.items()})

    __rmul__ = __mul__

    def table(self) -> str:
        """Return one line a term with its share, and the sum, as plain text."""
        rows = [*self.terms.items(), ("sum", self.total)]
        width = max(len(name) for name, _ in rows)
        total = self.total or 1.0
        return "\n".join(
            f"{name:{width}}  {format_flops(count):>12}  {count / total:4.0%}"
            for name, count in rows
        )


def format_flops(count: float) -> str:
    """Write a count with three digits and its unit: `62e9 -> "62 GFLOP"`."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{float(f'{count / size:.3g}'):g} {unit}FLOP"
    return f"{count:g} FLOP"


def measure_flops(module: Callable[..., Any], *args: Any, backward: bool = False) -> int:
    """Count the FLOPs that PyTorch sees in `module(*args)`, to hold a formula against.

    With `backward` the gradient of the result's sum is taken too. PyTorch counts matrix products,
    convolutions and attention, two FLOPs for each multiply-add, and nothing elementwise; its
    attention counts all pairs of positions, also where a causal mask hides half.
    """
    counter = FlopCounterMode(display=False)
    # PyTorch counts nothing for the CPU's flash attention; the plain formula does the same work.
    with counter, sdpa_kernel(SDPBackend.MATH):
        result = module(*args)
        if backward:
            first = result[0] if isinstance(result, tuple) else result
            first.sum().backward()
    return int(counter.get_total_flops())


# -- peaks ---------------------------------------------------------------------------------------

# TFLOP/s without sparsity, by the name CUDA reports: 16-bit on the tensor cores with 32-bit sums,
# TF32, plain 32-bit. 0 where a device lacks the format. Names must match in full: a laptop's or a
# MIG slice's is another device.
_PEAKS: tuple[tuple[str, float, float, float, str], ...] = (
    (r"B200", 2250, 1125, 75, "HGX B200 data sheet, an eighth of eight GPUs"),
    (r"H200", 989.4, 494.7, 67, "H200 data sheet, SXM"),
    (r"H200 NVL", 835.5, 417.5, 60, "H200 data sheet, NVL"),
    (r"H100 80GB HBM3", 989.4, 494.7, 67, "H100 data sheet, SXM"),
    (r"H100 PCIe", 756, 378, 51, "H100 data sheet, PCIe"),
    (r"H100 NVL", 835.5, 417.5, 60, "H100 data sheet, NVL"),
    (r"A100-SXM4-(40|80)GB|A100-PCIE-40GB|A100 80GB PCIe", 312, 156, 19.5, "A100 data sheet"),
    (r"A40", 149.7, 74.8, 37.4, "A40 data sheet"),
    (r"A30", 165, 82, 10.3, "A30 data sheet"),
    (r"A10", 125, 62.5, 31.2, "A10 data sheet"),
    (r"L40S", 362.05, 183, 91.6, "L40S data sheet"),
    (r"L40", 181.05, 90.5, 90.5, "L40 data sheet"),
    (r"L4", 121, 60, 30.3, "L4 data sheet, halved as it counts sparsity"),
    (r"RTX A6000", 154.8, 77.4, 38.7, "GA102 white paper"),
    (r"RTX 4090", 165.2, 82.6, 82.6, "Ada architecture white paper"),
    (r"RTX 3090", 71, 35.6, 35.6, "GA102 white paper"),
    (r"T4", 65, 0, 8.1, "T4 data sheet"),
    (r"V100-SXM2-(16|32)GB", 125, 0, 15.7, "V100 data sheet, SXM2"),
    (r"V100-PCIE-(16|32)GB", 112, 0, 14, "V100 data sheet, PCIe"),
)
_WITHOUT_BF16 = ("T4", "V100")


def peak_flops(device: torch.device, dtype: torch.dtype) -> Peak | None:
    """Return the peak FLOP/s of a device for matrix products of a dtype, or None if unknown.

    For a GPU it is the vendor's figure, without sparsity. A CPU's depends on clocks and cooling,
    so a large matrix product is timed for about 0.1 s with the threads PyTorch uses now.
    """
    if device.type == "cpu":
        return Peak(_measured_peak(dtype), "measured matmul peak")
    if device.type != "cuda":
        return None
    uses_tf32 = torch.get_float32_matmul_precision() != "highest"
    return data_sheet_peak(torch.cuda.get_device_name(device), dtype, uses_tf32=uses_tf32)


def data_sheet_peak(name: str, dtype: torch.dtype, *, uses_tf32: bool = False) -> Peak | None:
    """Look a GPU up by the name that CUDA reports; None if it is not in the table.

    `uses_tf32` says that float32 products run as TF32, as they do unless the precision of
    products is "highest".
    """
    short = re.sub(r"^((NVIDIA|Tesla|GeForce) )+", "", name)
    for pattern, half, tf32, single, source in _PEAKS:
        if not re.fullmatch(pattern, short):
            continue
        if dtype == torch.float32:
            teraflops, kind = (tf32, "TF32") if uses_tf32 and tf32 else (single, "fp32")
        elif dtype == torch.float16 or (
            dtype == torch.bfloat16 and not short.startswith(_WITHOUT_BF16)
        ):
            teraflops, kind = half, "fp16" if dtype == torch.float16 else "bf16"
        else:
            return None
        return Peak(teraflops * 1e12, f"{kind}, {source}")
    return None


def _measured_peak(dtype: torch.dtype) -> float:
    """Time square matrix products, doubling the size until one takes 10 ms; keep the best."""
    size, best, deadline = 256, 0.0, 0.0
    a = torch.ones(size, size, dtype=dtype)
    a @ a  # the first product starts the thread pool
    while True:
        begin = time.perf_counter()
        a @ a
        now = time.perf_counter()
        best = max(best, 2 * size**3 / (now - begin))
        if not deadline and now - begin < 0.01 and size < 4096:
            size *= 2
            a = torch.ones(size, size, dtype=dtype)
            continue
        deadline = deadline or now + 0.1
        if now >= deadline:
            return best


# -- memory and time of the process --------------------------------------------------------------


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory used so far, in GiB: of the GPU by tensors, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # getrusage's figure survives exec on Linux: a small program started by a large one reports
    # the large one's. VmHWM belongs to the program itself.
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024 / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended, in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# -- traces --------------------------------------------------------------------------------------


class Profiler:
    """Trace a few steps of a run with torch.profiler; does nothing without a folder.

    Call `step()` at the end of every step and `close()` at the end of the run. After step
    `first_step + steps` the folder holds `trace.json.gz`, for chrome://tracing or Perfetto, and
    `operators.txt`, the operators that took most time by themselves.
    """

    def __init__(self, folder: Path | None, first_step: int = 10, steps: int = 3) -> None:
        self.folder = folder
        self.written: list[Path] = []
        self._profile: torch.profiler.profile | None = None
        if folder is None:
            return
        files.make_folder(folder)
        waiting = max(first_step - 1, 0)  # and one step to warm the tracer itself up
        self._profile = torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=waiting, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )
        self._profile.start()

    def step(self) -> None:
        """Tell that a step has ended."""
        if self._profile is not None:
            self._profile.step()
            if self.written:
                self.close()

    def close(self) -> list[Path]:
        """Stop tracing; return the files written, none if the run ended before `first_step`."""
        if self._profile is not None:
            profile, self._profile = self._profile, None
            profile.stop()
        return self.written

    def _write(self, profile: torch.profiler.profile) -> None:
        """Write the trace and the table of operators."""
        assert self.folder is not None
        trace, operators = self.folder / "trace.json.gz", self.folder / "operators.txt"
        with tempfile.TemporaryDirectory() as scratch:  # the exporter goes by the name's ending
            exported = Path(scratch) / trace.name
            profile.export_chrome_trace(str(exported))
            files.write_file(trace, exported.read_bytes())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        averages = profile.key_averages()
        order = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
        table = averages.table(sort_by=order, row_limit=25, max_name_column_width=60)
        files.write_file(operators, table.encode())
        self.written = [trace, operators]


# -- comparing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """How long one of several things took.

    Attributes:
        name: which one.
        seconds: wall time, the median over the rounds.
        spread: (longest - shortest) / median of the wall time.
        cpu_seconds: of the process and its ended children, the median.
        ratio: times as long as the first one, the median over the rounds, each with itself.
        rounds: how often it was timed.
    """

    name: str
    seconds: float
    spread: float
    cpu_seconds: float
    ratio: float
    rounds: int


def compare(
    functions: Mapping[str, Callable[[], object]], rounds: int = 5, warmup: int = 1
) -> list[Row]:
    """Time functions in turns, so that a machine's moods hit all of them alike.

    Each round runs every function once, starting with another one each time, and a ratio is
    taken within a round. On a GPU a function must wait for its own work (`synchronize`). With
    `{"ours": f, "peer": g}` the peer's ratio is how many times as fast ours is.
    """
    names = list(functions)
    for _ in range(warmup):
        for name in names:
            functions[name]()
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for at in range(len(names)):
            name = names[(at + turn) % len(names)]
            cpu_begin, begin = cpu_seconds(), time.perf_counter()
            functions[name]()
            wall[name].append(time.perf_counter() - begin)
            cpu[name].append(cpu_seconds() - cpu_begin)
    return [_row(name, wall[name], cpu[name], wall[names[0]]) for name in names]


def _row(name: str, wall: Sequence[float], cpu: Sequence[float], base: Sequence[float]) -> Row:
    median = statistics.median(wall)
    return Row(
        name=name,
        seconds=median,
        spread=(max(wall) - min(wall)) / median,
        cpu_seconds=statistics.median(cpu),
        ratio=statistics.median(ours / first for ours, first in zip(wall, base, strict=True)),
        rounds=len(wall),
    )


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table that also reads as plain text."""
    head = ("", "wall s", "spread", "CPU s", "ratio", "rounds")
    cells = [
        (
            row.name,
            f"{row.seconds:.4g}",
            f"{row.spread:.0%}",
            f"{row.cpu_seconds:.4g}",
            f"{row.ratio:.3f}",
            str(row.rounds),
        )
        for row in rows
    ]
    widths = [max(3, *(len(line[i]) for line in [head, *cells])) for i in range(len(head))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in [head, tuple("-" * width for width in widths), *cells]
    ]
    return "\n".join(f"| {line} |" for line in lines)
