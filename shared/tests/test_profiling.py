import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from shared import profiling
from shared.profiling import Flops, Peak, Profiler, Row, StepTimer

CPU = torch.device("cpu")
MILLISECOND = 1_000_000  # in nanoseconds


class Clock:
    """A clock that stands still between the steps that a test makes it take."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        """Return the time in nanoseconds."""
        return self.now_ns

    def pass_ms(self, milliseconds: float) -> None:
        """Let time pass."""
        self.now_ns += round(milliseconds * MILLISECOND)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put a clock under the test's control in place of the real one."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter_ns", clock)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now_ns / 1e9)
    return clock


def step(timer: StepTimer, clock: Clock, scale: float = 1.0) -> None:
    """Take one step of 100 ms times `scale`, in two micro-batches."""
    timer.start()
    for _ in range(2):
        for phase, milliseconds in (("data", 1), ("forward", 15), ("backward", 26)):
            clock.pass_ms(milliseconds * scale)
            timer.mark(phase)
    clock.pass_ms(10 * scale)
    timer.mark("optimizer")
    clock.pass_ms(6 * scale)
    timer.end()


def test_each_mark_gives_the_time_since_the_last_to_its_phase(clock: Clock) -> None:
    """Micro-batches add up, what no mark claims is idle, and the longest phase comes first."""
    timer = StepTimer(CPU, warmup_steps=0)
    step(timer, clock)
    step(timer, clock)
    split = timer.split()
    assert list(split) == ["backward", "forward", "optimizer", "idle", "data"]
    assert split == pytest.approx(
        {"backward": 0.052, "forward": 0.030, "optimizer": 0.010, "idle": 0.006, "data": 0.002}
    )


def test_the_split_leaves_out_warmup_and_ends_with_the_profiled_steps(clock: Clock) -> None:
    """Compiling in the first steps and a slow phase later do not change the profile."""
    timer = StepTimer(CPU, profiled_steps=4, warmup_steps=2)
    due = []
    for scale in (50, 50, 1, 1, 9):
        step(timer, clock, scale)
        due.append(timer.line_due)
    assert due == [False, False, False, True, False]
    assert sum(timer.split().values()) == pytest.approx(0.1)


def test_the_line_says_where_the_time_goes(clock: Clock) -> None:
    """One line: milliseconds, shares, tokens, FLOP/s and MFU, as far as they are known."""
    timer = StepTimer(CPU, warmup_steps=0)
    assert timer.line() == "too few steps to say where the time goes (0)"
    step(timer, clock)
    shares = "backward 52 %, forward 30 %, optimizer 10 %, idle 6 %, data 2 %"
    assert timer.line() == f"step 100 ms: {shares}"
    timer.tokens_per_step, timer.flops_per_step = 3730, 6.2e9
    assert timer.line() == f"step 100 ms: {shares} | 37,300 tok/s | 62 GFLOP/s"
    timer.peak = Peak(96.9e9, "measured matmul peak")
    assert timer.line().endswith("62 GFLOP/s (MFU 0.64 of 96.9 GFLOP/s, measured matmul peak)")


def test_a_gpu_is_waited_for_only_while_the_split_is_taken(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks synchronise in the profiled steps, and after them never again."""
    waits: list[torch.device] = []
    monkeypatch.setattr(profiling, "synchronize", waits.append)
    timer = StepTimer(torch.device("cuda"), profiled_steps=2)
    step(timer, clock)
    step(timer, clock)
    assert len(waits) == 2 * 8
    step(timer, clock)
    assert len(waits) == 2 * 8
    timer.window()  # but a speed counts the work that is still under way
    assert len(waits) == 2 * 8 + 1


def test_the_window_counts_steps_and_not_what_lies_between(clock: Clock) -> None:
    """An evaluation between two steps does not slow the reported speed; each call starts anew."""
    speed = {"tokens_per_step": 500, "flops_per_step": 2_000_000_000}
    timer = StepTimer(CPU, **speed, peak=Peak(1e11, ""), warmup_steps=0)
    assert timer.window() == {}
    step(timer, clock)
    clock.pass_ms(5000)
    step(timer, clock)
    assert timer.window() == pytest.approx({"step_ms": 100.0, "tok_per_sec": 5000.0, "mfu": 0.2})
    assert sum(timer.split().values()) == pytest.approx(0.1)
    step(timer, clock, scale=2)
    assert timer.window() == pytest.approx({"step_ms": 200.0, "tok_per_sec": 2500.0, "mfu": 0.1})


def test_the_window_knows_only_what_it_was_told(clock: Clock) -> None:
    """Without tokens, FLOPs and a peak there is the time of a step alone."""
    timer = StepTimer(CPU, peak=Peak(1e11, ""))
    step(timer, clock)
    assert timer.window() == pytest.approx({"step_ms": 100.0})


def test_flops_show_what_they_are_the_sum_of() -> None:
    """The table has a line for each term and the sum; a factor scales all terms."""
    flops = 3 * Flops({"mlp": 2e9, "attention": 5e8})
    assert flops.total == 7.5e9
    assert flops.table().splitlines() == [
        "mlp             6 GFLOP   80%",
        "attention     1.5 GFLOP   20%",
        "sum           7.5 GFLOP  100%",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12, "12 FLOP"),
        (1234, "1.23 kFLOP"),
        (62.04e9, "62 GFLOP"),
        (999.9e9, "1 TFLOP"),
        (3.2e15, "3.2 PFLOP"),
    ],
)
def test_flops_are_written_with_three_digits(count: float, text: str) -> None:
    """The unit is the largest that leaves at least one digit before the point."""
    assert profiling.format_flops(count) == text


def test_measured_flops_equal_the_formulas() -> None:
    """Two FLOPs a multiply-add; the backward pass of a layer costs twice its forward pass."""
    linear, x = nn.Linear(64, 32), torch.ones(8, 64, requires_grad=True)
    assert profiling.measure_flops(linear, x) == 2 * 8 * 64 * 32
    assert profiling.measure_flops(linear, x, backward=True) == 3 * 2 * 8 * 64 * 32
    pair = profiling.measure_flops(lambda x: (linear(x), None), x, backward=True)
    assert pair == 3 * 2 * 8 * 64 * 32


def test_measured_flops_see_attention_on_a_cpu() -> None:
    """Scores and weighted values, 2 B H T T D each, though the CPU's kernel is not counted."""
    B, H, T, D = 2, 4, 16, 8
    q = torch.ones(B, H, T, D)
    attention: Callable[..., torch.Tensor] = nn.functional.scaled_dot_product_attention
    assert profiling.measure_flops(attention, q, q, q) == 2 * (2 * B * H * T * T * D)


@pytest.mark.parametrize(
    ("name", "dtype", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4),
        ("NVIDIA H100 PCIe", torch.float16, 756),
        ("NVIDIA H200", torch.bfloat16, 989.4),
        ("NVIDIA A100-SXM4-40GB", torch.bfloat16, 312),
        ("NVIDIA A100 80GB PCIe", torch.float32, 19.5),
        ("NVIDIA A10", torch.bfloat16, 125),
        ("NVIDIA L4", torch.bfloat16, 121),
        ("NVIDIA L40S", torch.bfloat16, 362.05),
        ("Tesla T4", torch.float16, 65),
        ("Tesla V100-SXM2-16GB", torch.float32, 15.7),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2),
        ("NVIDIA GeForce RTX 3090", torch.float16, 71),
        ("NVIDIA B200", torch.bfloat16, 2250),
    ],
)
def test_a_gpus_peak_is_its_data_sheets(name: str, dtype: torch.dtype, teraflops: float) -> None:
    """Each name that CUDA reports finds the dense figure, with its source."""
    peak = profiling.data_sheet_peak(name, dtype)
    assert peak is not None
    assert peak.value == teraflops * 1e12
    assert "data sheet" in peak.source or "white paper" in peak.source


def test_float32_products_have_two_peaks() -> None:
    """TF32 where the precision of products allows it, plain 32-bit otherwise or on older GPUs."""
    peaks = [
        profiling.data_sheet_peak(name, torch.float32, uses_tf32=uses_tf32)
        for name in ("NVIDIA H100 80GB HBM3", "Tesla T4")
        for uses_tf32 in (True, False)
    ]
    assert [peak and peak.value / 1e12 for peak in peaks] == [494.7, 67, 8.1, 8.1]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", torch.bfloat16),
        ("NVIDIA A10G", torch.bfloat16),
        ("Some other GPU", torch.bfloat16),
        ("Tesla T4", torch.bfloat16),
        ("Tesla V100-SXM2-16GB", torch.bfloat16),
        ("NVIDIA H100 80GB HBM3", torch.float64),
    ],
)
def test_an_unknown_peak_is_none(name: str, dtype: torch.dtype) -> None:
    """A look-alike, a slice or a format that the GPU lacks gets no peak rather than a wrong one."""
    assert profiling.data_sheet_peak(name, dtype) is None


def test_a_cpus_peak_is_measured_and_says_so(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best product counts: 2 n^3 FLOPs over its time; the size grows until it takes 10 ms."""
    sizes: list[int] = []
    durations = {256: 1, 512: 4, 1024: 16}

    class Matrix:
        def __init__(self, size: int) -> None:
            self.size = size

        def __matmul__(self, other: "Matrix") -> None:
            sizes.append(self.size)
            slow = 2 if len(sizes) % 2 else 1  # a busy neighbour takes every other one
            clock.pass_ms(durations[self.size] * slow)

    monkeypatch.setattr(torch, "ones", lambda size, *_, **__: Matrix(size))
    peak = profiling.peak_flops(CPU, torch.float32)
    assert peak is not None
    assert peak.value == pytest.approx(2 * 1024**3 / 0.016)
    assert peak.source == "measured matmul peak"
    assert set(sizes) == {256, 512, 1024}
    assert clock.now_ns < 250 * MILLISECOND


def test_a_device_without_data_sheet_has_no_peak() -> None:
    """What is neither a CPU nor a CUDA GPU has no peak."""
    assert profiling.peak_flops(torch.device("mps"), torch.float32) is None


def test_peak_memory_grows_with_what_is_held() -> None:
    """Holding 64 MiB more than ever before raises the peak by about that."""
    before = profiling.peak_memory_gib(CPU)
    now = psutil.Process().memory_info().rss / 2**30
    held = np.ones(int((before - now + 0.0625) * 2**30), dtype=np.uint8)
    assert before + 0.05 < profiling.peak_memory_gib(CPU) < before + 0.1
    assert held[-1] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not pass the peak on")
def test_peak_memory_is_not_the_parents() -> None:
    """A program started by a larger one reports its own peak."""
    held = np.ones(2**28, dtype=np.uint8)
    code = (
        "import torch; from shared.profiling import peak_memory_gib as p;"
        "print(p(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < profiling.peak_memory_gib(CPU) - 0.1
    assert held[-1] == 1


def test_cpu_seconds_count_children_that_have_ended() -> None:
    """The time of a subprocess belongs to the run that started it."""
    before = profiling.cpu_seconds()
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert profiling.cpu_seconds() - before > 0.29


def test_a_profile_holds_the_asked_steps_and_the_top_operators(tmp_path: Path) -> None:
    """Steps 2 and 3 are traced, by name and no others; then tracing is over."""
    profiler = Profiler(tmp_path / "profile", first_step=2, steps=2)
    linear = nn.Linear(8, 8)
    for _ in range(7):
        linear(torch.ones(2, 8))
        profiler.step()
    written = profiler.close()
    assert [path.name for path in written] == ["trace.json.gz", "operators.txt"]
    trace = json.loads(gzip.decompress(written[0].read_bytes()))
    names = {str(event.get("name")) for event in trace["traceEvents"]}
    assert {name for name in names if "ProfilerStep#" in name} == {
        "ProfilerStep#2",
        "ProfilerStep#3",
    }
    assert "aten::addmm" in written[1].read_text()
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {
        "trace.json.gz",
        "operators.txt",
    }


def test_a_run_that_ends_before_the_profile_writes_none(tmp_path: Path) -> None:
    """The caller learns from the empty list that nothing was traced; closing twice is fine."""
    profiler = Profiler(tmp_path, first_step=10)
    profiler.step()
    assert profiler.close() == []
    assert profiler.close() == []
    assert list(tmp_path.iterdir()) == []


def test_a_profiler_without_folder_does_nothing() -> None:
    """Training code needs no branch for it."""
    profiler = Profiler(None)
    profiler.step()
    assert profiler.close() == []


def test_compared_functions_take_turns(clock: Clock) -> None:
    """Each round starts with another one, after the warm-up; ratios are taken within a round."""
    order: list[str] = []
    speed = iter([1, 1, 1, 1, 2, 2, 10, 10])  # the machine slows down while we measure

    def take(name: str, milliseconds: float) -> Callable[[], None]:
        def function() -> None:
            order.append(name)
            clock.pass_ms(milliseconds * next(speed))

        return function

    rows = profiling.compare({"ours": take("ours", 10), "peer": take("peer", 15)}, rounds=3)
    assert "".join(name[0] for name in order) == "op" + "op" + "po" + "op"
    assert [row.name for row in rows] == ["ours", "peer"]
    assert [row.seconds for row in rows] == pytest.approx([0.020, 0.030])
    assert [row.spread for row in rows] == pytest.approx([4.5, 4.5])
    assert [row.ratio for row in rows] == pytest.approx([1.0, 1.5])
    assert [row.rounds for row in rows] == [3, 3]


def test_compared_functions_report_cpu_time() -> None:
    """A function that sleeps takes wall time and no CPU time."""
    (row,) = profiling.compare({"sleep": lambda: time.sleep(0.1)}, rounds=1, warmup=0)
    assert row.seconds >= 0.1
    assert row.cpu_seconds < row.seconds


def test_a_table_of_rows_is_markdown() -> None:
    """Columns are as wide as their longest cell, so it reads as plain text too."""
    rows = [Row("ours", 0.5, 0.021, 0.9, 1.0, 5), Row("transformers", 0.6, 0.03, 1.1, 1.2, 5)]
    assert profiling.table(rows).splitlines() == [
        "|              | wall s | spread | CPU s | ratio | rounds |",
        "| ------------ | ------ | ------ | ----- | ----- | ------ |",
        "| ours         | 0.5    | 2%     | 0.9   | 1.000 | 5      |",
        "| transformers | 0.6    | 3%     | 1.1   | 1.200 | 5      |",
    ]
