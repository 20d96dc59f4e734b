"""Several processes train as one, and end together when one of them is in trouble."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore
from torch.nn.parallel import DistributedDataParallel

from shared import parallel
from shared.checkpoint import open_checkpoint
from shared.config import TrainerConfig
from shared.errors import DataError, DistributedError, Failure, UsageError
from shared.metrics import read_metrics
from shared.parallel import (
    World,
    communicating,
    default_threads,
    pick_device,
    to_device,
    usable_cores,
)
from shared.runs import Run
from shared.sampler import Sampler
from shared.trainer import Trainer

COMMON = ("--max-steps", 12, "--log-every", 1, "--eval-every", 5, "--checkpoint-every", 4)
FLAGS = (*COMMON, "--batch-size", 4, "--dropout", 0)


def losses(folder: Path, name: str = "loss", kind: str = "train") -> list[float]:
    records = read_metrics(folder / "metrics.jsonl")
    return [record[name] for record in records if record["kind"] == kind]


@pytest.fixture(scope="session")
def pair(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder and the weights' digest of an undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    main, other = demo.run_world(2, folder, *FLAGS)
    assert (main.code, other.code) == (0, 0), main.output + other.output
    assert main.result["digest"] == other.result["digest"]
    return folder, main.result["digest"]


def test_two_processes_train_as_one_with_the_same_global_batch(
    demo: Any, pair: tuple[Path, str], tmp_path: Path
) -> None:
    """Losses, norms and evaluations agree, with the larger batch and with accumulation."""
    for name, flags in (("batch", (8, 1)), ("accumulated", (4, 2))):
        sizes = ("--batch-size", flags[0], "--grad-accum-steps", flags[1])
        demo.run(tmp_path / name, *COMMON, "--dropout", 0, *sizes)
        for metric, kind in (("loss", "train"), ("grad_norm", "train"), ("val_loss", "val")):
            ours, theirs = losses(pair[0], metric, kind), losses(tmp_path / name, metric, kind)
            assert ours == pytest.approx(theirs, rel=1e-3)
            assert len(ours) > 2


def test_all_but_the_last_micro_batch_go_without_communication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Gradients are averaged once a step, whatever the accumulation."""
    calls: list[int] = []

    def average(
        _state: object,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        calls.append(bucket.index())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def wrap(module: nn.Module, _world: World) -> nn.Module:
        wrapped = DistributedDataParallel(module)
        wrapped.register_comm_hook(None, average)
        return wrapped

    class Ones:
        def __len__(self) -> int:
            return 8

        def batch(self, indices: Any, _epochs: Any) -> Tensor:
            return torch.ones(len(indices), 1)

        def weight(self, batch: Tensor) -> float:
            return len(batch)

    monkeypatch.setattr(parallel, "wrap", wrap)
    store = FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with Run.open("demo", tmp_path / "run", resume=False, config={}) as run:
            config = TrainerConfig(
                max_steps=3, batch_size=2, grad_accum_steps=4, device="cpu", precision="fp32"
            )
            world = World(torch.device("cpu"))
            Trainer(
                config,
                nn.Linear(1, 1),
                lambda module, batch: module(batch).square().mean(),
                Ones(),
                run=run,
                world=world,
            ).fit()
    finally:
        dist.destroy_process_group()
    assert calls == [0, 0, 0]


def test_case_27_a_nan_on_one_process_is_skipped_by_all(demo: Any, tmp_path: Path) -> None:
    """Rank 1's NaN is counted on both, logged with the examples of both; weights stay equal."""
    flags = (*FLAGS, "--nan-steps", 3, 7, "--fault-rank", 1)
    main, other = demo.run_world(2, tmp_path / "run", *flags)
    assert main.result["digest"] == other.result["digest"]
    for ended in (main, other):
        assert ended.result["health"]["skipped"] == 2
        assert not ended.result["health"]["rolled_back"]
    skips = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "skip"]
    assert [record["step"] for record in skips] == [4, 8]
    assert skips[0]["examples"] == Sampler(256, 0).draw(24, 8)[0].tolist()


def test_case_27_bad_steps_in_a_row_end_all_processes(demo: Any, tmp_path: Path) -> None:
    """Both roll back together, then exit 6 with a replay file each."""
    flags = (*FLAGS, "--nan-steps", *range(5, 12), "--fault-rank", 1)
    ended = demo.run_world(2, tmp_path / "run", *flags)
    assert [each.code for each in ended] == [6, 6], ended[0].output + ended[1].output
    assert ended[0].output.count("back to the weights of step-00000005") == 1
    for rank, each in enumerate(ended):
        assert "is step 11; last good checkpoint" in each.output
        replay = torch.load(tmp_path / "run" / f"replay-rank{rank}.pt", weights_only=True)
        assert len(replay["batches"][0]["x"]) == 4


def test_case_24_a_signal_on_one_process_stops_all_after_the_same_step(
    demo: Any, pair: tuple[Path, str], tmp_path: Path
) -> None:
    """In a step and in an evaluation: both exit 143, one checkpoint, and resuming adds up."""
    folder = tmp_path / "run"
    for number, point in enumerate(("step:3", "evaluation:2")):
        env = {"MLE_KILL_AT": point, "MLE_KILL_SIGNAL": "SIGTERM", "MLE_KILL_RANK": "1"}
        resume = ["--resume"] if number else []
        ended = demo.run_world(2, folder, *FLAGS, *resume, env=env)
        assert [each.code for each in ended] == [143, 143], ended[0].output + ended[1].output
        assert f"stopped after step {4 + number}," in ended[1].output
        assert open_checkpoint(folder).step == 4 + number
    ended = demo.run_world(2, folder, *FLAGS, "--resume")
    assert {each.result["digest"] for each in ended} == {pair[1]}
    assert losses(folder, "val_loss", "val") == losses(pair[0], "val_loss", "val")


def test_case_29_a_killed_worker_ends_the_others_and_a_restart_resumes(
    demo: Any, pair: tuple[Path, str], tmp_path: Path
) -> None:
    """The survivor exits 7; a second incarnation resumes unasked, to the same weights."""
    env = {"MLE_KILL_AT": "step:6", "MLE_KILL_RANK": "1"}
    main, other = demo.run_world(2, tmp_path / "run", *FLAGS, env=env)
    assert other.code == -signal.SIGKILL
    assert main.code == 7, main.output
    assert "another process of this run died or hangs" in main.output
    assert "Traceback" not in main.output
    env["TORCHELASTIC_RESTART_COUNT"] = "1"
    ended = demo.run_world(2, tmp_path / "run", *FLAGS, env=env)
    assert {each.result["digest"] for each in ended} == {pair[1]}


@pytest.mark.slow
def test_case_29_torchrun_restarts_a_run_whose_worker_was_killed(
    torchrun: Any, pair: tuple[Path, str], tmp_path: Path
) -> None:
    """Under torchrun --max-restarts 1 the run ends by itself with the weights of no kill."""
    env = {"MLE_KILL_AT": "step:6", "MLE_KILL_RANK": "1"}
    ended = torchrun(tmp_path / "run", *FLAGS, restarts=1, env=env)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(pair[1]) == 2
    assert losses(tmp_path / "run") == losses(pair[0])


def test_case_30_a_hanging_worker_is_detected_with_the_stacks_of_all(
    demo: Any, tmp_path: Path
) -> None:
    """A worker that sleeps: both exit 7 within the time-out and say where they were."""
    flags = (*FLAGS, "--hang-step", 4, "--fault-rank", 1, "--dist-timeout", 5)
    ended = demo.run_world(2, tmp_path / "run", *flags)
    assert [each.code for each in ended] == [7, 7], ended[0].output + ended[1].output
    assert "no progress for" in ended[0].output
    sleeping = (tmp_path / "run" / "stack-rank1.txt").read_text()
    waiting = (tmp_path / "run" / "stack-rank0.txt").read_text()
    assert "demo.py" in sleeping
    assert "trainer.py" in waiting


def test_case_30_a_stopped_worker_is_detected_by_the_others(demo: Any, tmp_path: Path) -> None:
    """A frozen process can say nothing; the other one does, and exits 7."""
    env = {"MLE_KILL_AT": "step:4", "MLE_KILL_SIGNAL": "SIGSTOP", "MLE_KILL_RANK": "1"}
    flags = (*FLAGS, "--dist-timeout", 5)
    main, other = demo.start_world(2, tmp_path / "run", *flags, env=env)
    assert main.wait().code == 7
    assert (tmp_path / "run" / "stack-rank0.txt").exists()
    other.send(signal.SIGKILL)
    assert other.wait().code == -signal.SIGKILL


def test_case_25_a_failed_save_on_the_main_process_ends_all_with_its_code(
    demo: Any, tmp_path: Path
) -> None:
    """A disk that is full at the second save: exit 5 everywhere, the first one stays."""
    flags = (*FLAGS, "--disk-full-at-save", 3)  # the first save also makes checkpoints/
    ended = demo.run_world(2, tmp_path / "run", *flags)
    assert [each.code for each in ended] == [5, 5], ended[0].output + ended[1].output
    assert open_checkpoint(tmp_path / "run").step == 4


def test_case_31_another_world_size_keeps_the_exact_order_of_samples(
    demo: Any, tmp_path: Path
) -> None:
    """One process, then two, then one with accumulation: each example comes when it was due."""
    folder = tmp_path / "run"
    env = {"MLE_KILL_AT": "step:5", "MLE_KILL_SIGNAL": "SIGTERM"}
    flags = (*COMMON, "--dropout", 0, "--record")
    assert demo.start(folder, *flags, "--batch-size", 8, env=env).wait().code == 143
    drawn = [json.loads(line) for line in (folder / "draws-0.jsonl").read_text().splitlines()]
    (folder / "draws-0.jsonl").unlink()
    env["MLE_KILL_RANK"] = "0"
    ended = demo.run_world(2, folder, *flags, "--batch-size", 4, "--resume", env=env)
    assert [each.code for each in ended] == [143, 143], ended[0].output
    both = [
        [json.loads(line) for line in (folder / f"draws-{rank}.jsonl").read_text().splitlines()]
        for rank in (0, 1)
    ]
    drawn += [first + second for first, second in zip(*both, strict=True)]
    (folder / "draws-0.jsonl").unlink()
    assert demo.run(folder, *flags, "--batch-size", 2, "--resume").code == 0
    parts = [json.loads(line) for line in (folder / "draws-0.jsonl").read_text().splitlines()]
    everything = [index for step in drawn + parts for index in step]
    assert everything == Sampler(256, 0).draw(0, 12 * 8)[0].tolist()
    three = demo.run_world(3, folder, *flags, "--batch-size", 4, "--resume", "--max-steps", 14)
    assert [each.code for each in three] == [2, 2, 2]
    assert "cannot divide without changing the order" in three[0].output
    assert "the number of processes must divide 8" in three[0].output


# -- the small parts -----------------------------------------------------------------------------


class Pair(NamedTuple):
    """A batch with names."""

    x: Tensor
    y: Tensor


def test_batches_of_any_nesting_move_to_the_device() -> None:
    """Tuples, lists, dicts and named tuples keep their type; other values stay."""
    meta = torch.device("meta")
    batch = {"a": Pair(torch.zeros(1), torch.ones(2)), "b": [torch.zeros(3), "text"], "c": (1,)}
    moved = to_device(batch, meta)
    assert isinstance(moved["a"], Pair)
    assert [moved["a"].y.device, moved["b"][0].device] == [meta, meta]
    assert (moved["b"][1], moved["c"]) == ("text", (1,))


def test_only_errors_about_other_processes_are_distributed_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A back end's error exits 7; any other error stays what it is, also with such words."""
    with pytest.raises(DistributedError), communicating():
        raise dist.DistBackendError("NCCL error")
    with pytest.raises(RuntimeError, match="socket") as raised, communicating():
        raise RuntimeError("the socket of my own")  # no group: nobody to lose
    assert not isinstance(raised.value, DistributedError)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(DistributedError), communicating():
        raise RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes") as raised, communicating():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not isinstance(raised.value, DistributedError)


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked process, which a watchdog may end; return its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_watchdog_without_a_disk_still_ends_the_process(tmp_path: Path) -> None:
    """Where the stacks cannot be written, the process exits all the same."""
    (tmp_path / "file").write_text("")

    def hang() -> None:
        with parallel.Watchdog(0.1, tmp_path / "file" / "stack.txt"):
            time.sleep(60)

    assert in_child(hang) == 7


def test_a_watchdog_counts_from_its_start_and_from_each_beat(tmp_path: Path) -> None:
    """Preparing for long before training, or beating, is no hang."""

    def train() -> None:
        dog = parallel.Watchdog(2.0, tmp_path / "stack.txt")
        dog._last_beat -= 100  # made long before it starts
        with dog:
            for _ in range(4):
                time.sleep(0.7)
                dog.beat()

    assert in_child(train) == 0


def test_devices_that_are_not_there_are_refused() -> None:
    """Each with a remedy."""
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="unknown; use auto"):
        pick_device("gpu9000")
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(UsageError, match="no CUDA device is usable here"):
            pick_device("cuda")


def in_world_of_two(store: Path, action: Callable[[World], None]) -> list[tuple[int, str]]:
    """Run `action` in two forked processes of a group; return their exit codes and messages."""
    pids = []
    for rank in (0, 1):
        pids.append(os.fork())
        if pids[-1] == 0:
            code = 99
            try:
                dist.init_process_group(
                    "gloo", store=FileStore(str(store), 2), rank=rank, world_size=2
                )
                action(World(torch.device("cpu"), rank, rank, 2))
                code = 0
            except Failure as error:
                code = error.exit_code
                Path(f"{store}-{rank}").write_text(str(error))
            finally:
                os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    said = [Path(f"{store}-{rank}") for rank in (0, 1)]
    texts = [path.read_text() if path.exists() else "" for path in said]
    return list(zip(codes, texts, strict=True))


def test_what_fails_on_the_main_process_first_ends_the_others_with_its_code(
    tmp_path: Path,
) -> None:
    """They blame nobody's death; and where it works they come second."""
    file = tmp_path / "made"

    def fail(world: World) -> None:
        with world.main_first():
            raise DataError("bad text")

    def make(world: World) -> None:
        with world.main_first():
            if world.is_main:
                time.sleep(0.2)
                file.write_text("ready")
            assert file.read_text() == "ready"

    main, other = in_world_of_two(tmp_path / "a", fail)
    assert main == (3, "bad text")
    assert other == (3, "the main process failed; its own line says why")
    assert in_world_of_two(tmp_path / "b", make) == [(0, ""), (0, "")]


def test_what_differs_among_processes_is_refused_by_all(tmp_path: Path) -> None:
    """All exit 2, so that nobody waits for the others."""

    def check(world: World) -> None:
        world.same_everywhere("the same", "seed")
        world.same_everywhere(f"digest {world.rank}", "data set")

    main, other = in_world_of_two(tmp_path / "store", check)
    assert [main[0], other[0]] == [2, 2]
    assert "1 of 2 processes have another data set than process 0 (digest 0; " in main[1]
    assert "process 1 has digest 1" in other[1]


def test_threads_are_those_asked_for_or_the_cores_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OMP_NUM_THREADS counts, except under torchrun, which sets it; then cores per process."""
    monkeypatch.setattr(parallel, "usable_cores", lambda: 8)
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert default_threads() == 8
    for text, expected in (("3", 3), ("12", 12), ("5,2", 5), ("0", 8), ("many", 8), ("", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert default_threads() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for processes, expected in (("2", 4), ("3", 2), ("9", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert default_threads() == expected


def test_the_quota_of_a_container_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole cores, at least one, at most those of the machine; no quota is no limit."""
    file = tmp_path / "cpu.max"
    monkeypatch.setattr(parallel, "CPU_QUOTA", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert usable_cores() == 4
    for text, expected in (
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("900000 100000\n", 4),
        ("max 100000\n", 4),
        ("", 4),
    ):
        file.write_text(text)
        assert usable_cores() == expected


def test_a_world_of_one_needs_no_group() -> None:
    """Sums, texts and turns work without a process group."""
    world = World(torch.device("cpu"))
    assert world.sum(torch.tensor([2.0])).tolist() == [2.0]
    assert world.broadcast_text("ä") == "ä"
    world.same_everywhere("a", "data")
    with world.main_first(), world.main_only() as answer:
        answer.append(1)


def test_a_small_model_gets_one_thread() -> None:
    """Whatever the machine has; a large one gets what `default_threads` finds."""
    assert default_threads(1_999_999) == 1
    assert default_threads(2_000_000) == default_threads()
