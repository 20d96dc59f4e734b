"""What a run leaves on disk, and that kills, signals and full disks do it no harm."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.callbacks import Callback, due
from shared.checkpoint import Checkpoint, Checkpoints, open_checkpoint
from shared.config import TrainerConfig
from shared.errors import ResourceError
from shared.faults import count_operations, fail_nth
from shared.metrics import read_metrics
from shared.parallel import World
from shared.runs import Run
from shared.sampler import IntArray
from shared.trainer import Trainer

FLAGS = (
    *("--max-steps", 24, "--batch-size", 4, "--grad-accum-steps", 2, "--optimizer", "muon"),
    *("--log-every", 1, "--eval-every", 5, "--checkpoint-every", 3),
)


def deterministic(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run without the measured times."""
    timed = {"step_ms", "tok_per_sec", "mfu"}
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.fixture(scope="session")
def whole(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """Return the weights' digest and the metrics of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return demo.run(folder, *FLAGS).result["digest"], deterministic(folder)


def assert_same(folder: Path, ended: Any, whole: tuple[str, list[dict[str, Any]]]) -> None:
    """Hold a run that was interrupted against the one that was not."""
    assert ended.code == 0, ended.output
    assert ended.result["digest"] == whole[0]
    assert deterministic(folder) == whole[1]
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_case_23_kills_at_every_named_point_leave_the_same_run(
    demo: Any, tmp_path: Path, whole: Any
) -> None:
    """One run, killed eight times and resumed: same weights to the bit, same metrics."""
    folder = tmp_path / "run"
    points = ["save:begin:2", "step:2", "save:before-manifest", "evaluation:9"]
    points += ["save:before-rename:2", "save:before-latest", "save:before-best", "save:end"]
    for number, point in enumerate(points):
        resume = ["--resume"] if number else []
        ended = demo.run(folder, *FLAGS, *resume, at=point)
        assert ended.code == -signal.SIGKILL, (point, ended.output)
    assert_same(folder, demo.run(folder, *FLAGS, "--resume"), whole)


@pytest.mark.slow
def test_case_23_kills_at_random_moments_leave_the_same_run(
    demo: Any, tmp_path: Path, whole: Any
) -> None:
    """Twelve kills by the clock, wherever they hit."""
    folder, rng, kills = tmp_path / "run", random.Random(0), 0
    while kills < 12:
        resume = ["--resume"] if (folder / "config.json").exists() else []
        running = demo.start(folder, *FLAGS, *resume)
        if (folder / "metrics.jsonl").exists() or kills:
            # A life that was killed after its last save leaves the next one nothing but the result.
            running.until("step ", "digest")
        time.sleep(rng.uniform(0, 0.05))
        running.send(signal.SIGKILL)
        if running.wait().code == 0:
            break
        kills += 1
    assert kills > 3
    assert_same(folder, demo.run(folder, *FLAGS, "--resume"), whole)


def test_case_24_signals_in_step_evaluation_and_save_end_saved(
    demo: Any, tmp_path: Path, whole: Any
) -> None:
    """Each exits with 128 + the signal and a checkpoint of its step; resuming adds up."""
    folder = tmp_path / "run"
    saved: list[int] = []
    for point, name in (
        ("step:4", "SIGTERM"),
        ("evaluation:3", "SIGINT"),
        ("save:before-rename", "SIGTERM"),
        ("save:begin:2", "SIGINT"),
        ("step:3", "SIGINT"),
    ):
        resume = ["--resume"] if saved else []
        ended = demo.run(folder, *FLAGS, *resume, at=point, signum=name)
        assert ended.code == 128 + signal.Signals[name], (point, ended.output)
        assert "Traceback" not in ended.output
        assert "continue with --resume" in ended.output.splitlines()[-1]
        saved.append(open_checkpoint(folder).step)
    # A signal in step 4 is granted in step 5; the evaluation there was then cut short.
    assert saved == [5, 5, 6, 11, 15]
    assert_same(folder, demo.run(folder, *FLAGS, "--resume"), whole)


def test_case_24_a_signal_while_compiling_ends_at_once(demo: Any, tmp_path: Path) -> None:
    """Nothing is lost before the first step, so nobody waits a minute for the compiler."""
    flags = (*FLAGS, "--compile", "--slow-compile", 300)
    running = demo.start(tmp_path / "run", *flags)
    running.until("compiling")
    running.send(signal.SIGTERM)
    ended = running.wait()
    assert ended.code == 143, ended.output
    assert "Traceback" not in ended.output
    again = demo.run(tmp_path / "run", *FLAGS, "--resume")
    assert again.code == 0


def test_case_24_the_second_signal_exits_at_once(demo: Any, tmp_path: Path) -> None:
    """A step that never ends can't be saved; the checkpoint before it stays."""
    running = demo.start(tmp_path / "run", *FLAGS, "--hang-step", 4)
    running.until("step  4/24")
    time.sleep(0.1)
    running.send(signal.SIGTERM)
    running.until("once more to exit at once")
    running.send(signal.SIGTERM)
    assert running.wait().code == 143
    assert open_checkpoint(tmp_path / "run").step == 3


@pytest.mark.slow
def test_a_process_of_its_own_behaves_like_a_forked_one(
    demo_path: Path, tmp_path: Path, whole: Any
) -> None:
    """What the other tests do in forked processes holds for `python demo.py`."""
    words = [sys.executable, str(demo_path), "--out", str(tmp_path / "run"), "--threads", "1"]
    words += ["--device", "cpu", *map(str, FLAGS)]
    found = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr
    assert whole[0] in found.stdout
    assert deterministic(tmp_path / "run") == whole[1]


# -- disks ---------------------------------------------------------------------------------------


class Zeros:
    """Eight examples of one number."""

    def __len__(self) -> int:
        return 8

    def batch(self, indices: IntArray, _epochs: IntArray) -> Tensor:
        """Build a batch."""
        return torch.from_numpy(indices).float()[:, None]

    def weight(self, batch: Tensor) -> float:
        """Count its examples."""
        return len(batch)


def fit(folder: Path, failing: Any, **flags: Any) -> tuple[list[int], Any]:
    """Train four steps with two saves while `failing`; return the steps saved, and the faults."""
    saved: list[int] = []

    class Watch(Callback):
        def on_checkpoint(self, trainer: Trainer[Any], checkpoint: Checkpoint) -> None:
            assert trainer.state.step == checkpoint.step
            saved.append(checkpoint.step)

    def loss(module: nn.Module, batch: Tensor) -> Tensor:
        value: Tensor = module(batch).square().mean()
        return value

    config = {"max_steps": 4, "batch_size": 2, "checkpoint_every": 2, "keep_checkpoints": 1}
    with Run.open("demo", folder, resume=False, config={}) as run:
        trainer = Trainer(
            TrainerConfig(
                **{**config, "log_every": 1, "device": "cpu", "precision": "fp32", **flags}
            ),
            nn.Linear(1, 1),
            loss,
            Zeros(),
            run=run,
            world=World(torch.device("cpu")),
            validation=Zeros(),
            callbacks=[Watch()],
        )
        with failing as operations:
            try:
                trainer.fit()
            except ResourceError as error:
                operations.error = error
    return saved, operations


@pytest.mark.parametrize("lasting", [False, True])
def test_case_25_a_full_disk_at_any_moment_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None, lasting: bool
) -> None:
    """For every write, fsync, rename ... of a run: exit 5, what was saved verifies, no rubbish."""
    monkeypatch.setattr("shared.runs.source_commit", lambda: None)
    # A full disk still deletes and, mostly, renames.
    kinds = {"open", "write", "mkdir"} if lasting else None
    failures = 0
    for n in range(1, 500):
        folder = tmp_path / str(n)
        saved, operations = fit(folder, fail_nth(n, kinds=kinds, lasting=lasting))
        checkpoints = Checkpoints(folder / "checkpoints")
        newest = checkpoints.newest()
        assert not checkpoints.refused, (n, operations.seen[n - 1])
        if saved:
            assert newest is not None, (n, operations.seen[n - 1])
            assert newest.step >= saved[-1]
        if not operations.failed:
            break
        failures += 1
        kind, path = operations.seen[n - 1]
        assert operations.error.exit_code == 5, (n, kind, path)
        # What can't be deleted stays until the next start.
        if kind not in ("unlink", "rmtree"):
            rubbish = [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
            assert not rubbish, (n, kind, path)
        if kind == "write" and path.name == "metrics.jsonl":
            assert "metrics.jsonl" in str(operations.error)
    assert saved == [2, 4]
    assert failures > 15


def test_a_run_logs_everywhere_and_draws_its_loss(demo: Any, tmp_path: Path) -> None:
    """metrics.jsonl, TensorBoard, loss.png; one line says where the time goes, without idling."""
    ended = demo.run(tmp_path / "run", *FLAGS)
    folder = tmp_path / "run"
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "tensorboard").glob("events*"))
    records = deterministic(folder)
    train = [record for record in records if record["kind"] == "train"]
    val = [record for record in records if record["kind"] == "val"]
    assert [record["step"] for record in train] == list(range(1, 25))
    assert [record["step"] for record in val] == [5, 10, 15, 20, 24]
    assert {"loss", "grad_norm", "learning_rate", "skipped"} < set(train[0])
    (line,) = [line for line in ended.output.splitlines() if "forward" in line]
    assert "step " in line
    assert "backward" in line


def test_the_timing_line_does_not_count_imports(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard is imported and opened before the first step."""
    from shared.metrics import TensorBoard

    order: list[str] = []
    start = TensorBoard._start

    def noted(board: TensorBoard) -> None:
        order.append("start")
        start(board)

    class Watch(Callback):
        def on_boundary(self, _trainer: Trainer[Any]) -> None:
            order.append("boundary")

    monkeypatch.setattr(TensorBoard, "_start", noted)
    monkeypatch.setattr("shared.callbacks.Profiling.on_boundary", Watch.on_boundary)
    fit(tmp_path / "run", count_operations())
    assert order[:2] == ["start", "boundary"]


def test_due() -> None:
    """Every third step, never step 0, and 0 means never."""
    assert [step for step in range(10) if due(step, 3)] == [3, 6, 9]
    assert not any(due(step, 0) for step in range(10))
