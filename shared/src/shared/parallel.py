"""One process or many: joining `torchrun`'s group, wrapping the module, agreeing, watching.

A trainer knows only `World`. FSDP2 will be a second `wrap` beside DDP, and change nothing else.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from shared.errors import DistributedError, Failure, UsageError

# Microseconds of CPU time that a container may use in a period of so many, as "200000 100000".
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class World:
    """Who this process is among `size` processes, and the device it computes on."""

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the person."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes, the same on each; `values` may change."""
        if self.size > 1:
            values = values.to(self.device)
            with communicating():
                dist.all_reduce(values)
        return values

    def broadcast_text(self, text: str) -> str:
        """Return rank 0's `text` on every rank (as bytes in a tensor: no pickle is involved)."""
        if self.size == 1:
            return text
        data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        length = self.sum(torch.tensor([len(data) if self.is_main else 0], device=self.device))
        if not self.is_main:
            data = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        with communicating():
            dist.broadcast(data, src=0)
        return bytes(data.tolist()).decode()

    def same_everywhere(self, text: str, what: str) -> None:
        """Make sure that every process has the same `text`, such as the digest of its data.

        Raises `UsageError`, on all processes, if one differs from rank 0's; `what` says of what.
        """
        main = self.broadcast_text(text)
        others = int(self.sum(torch.tensor([text != main], dtype=torch.int64)))
        if others:
            raise UsageError(
                f"{others} of {self.size} processes have another {what} than process 0 "
                f"({main[:80]}; process {self.rank} has {text[:80]}); give all the same"
            )

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let rank 0 run the block before the others, so that they find its files ready.

        If the block fails there, the others raise a `Failure` with the same exit code instead.
        """
        if self.is_main:
            with self.main_only():
                yield
        else:
            self.follow_main()
            yield

    @contextmanager
    def main_only(self) -> Iterator[list[int]]:
        """Do something on rank 0 while the others `follow_main`; they learn whether it failed.

        The block may append one number to the list it gets: the others' answer.
        """
        answer: list[int] = []
        report = [1, 0]  # failed, answer
        try:
            yield answer
            report = [0, *answer, 0][:2]
        except Failure as error:
            report = [error.exit_code, 0]
            raise
        finally:
            self.sum(torch.tensor(report))

    def follow_main(self) -> int:
        """Wait for rank 0's `main_only` block and return its answer.

        If the block failed, raises a `Failure` with the same exit code.
        """
        failed, answer = self.sum(torch.zeros(2, dtype=torch.int64)).tolist()
        if failed:
            failure = Failure("the main process failed; its own line says why")
            failure.exit_code = int(failed)
            raise failure
        return int(answer)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn `--device` into a device: "auto" is a GPU if there is one, else the CPU.

    Raises `UsageError` when the named device cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: unknown; use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"--device {name}: no CUDA device is usable here; use --device cpu")
        if ":" not in name:
            device = torch.device("cuda", local_rank)
        if device.index >= torch.cuda.device_count():
            raise UsageError(f"--device {name}: only {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: not available here; use --device cpu")
    return device


@contextmanager
def join(device: str = "auto", threads: int = 0, timeout_s: float = 600.0) -> Iterator[World]:
    """Join the process group that `torchrun` announces, or be a world of one.

    `threads` is the number of CPU threads of this process; 0 takes `default_threads`. A
    collective that waits over twice `timeout_s` seconds fails.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, local_rank)
    torch.set_num_threads(threads or default_threads())
    if size == 1:
        yield World(chosen)
        return
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    with communicating():
        # The watchdog reports a hang after one time-out, with stacks; this is the net below it.
        store, rank, size = meeting_place(timedelta(seconds=2 * timeout_s))
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=2 * timeout_s),
        )
    try:
        yield World(chosen, dist.get_rank(), local_rank, dist.get_world_size())
    finally:
        dist.destroy_process_group()


def meeting_place(timeout: timedelta) -> tuple[Store, int, int]:
    """Return the store through which the processes find each other, this one's rank, and how many.

    torchrun keeps its store over a restart, with the addresses of the processes that died; whoever
    comes first would call those. On one node the restart's number tells old from new (on several
    nodes their numbers may differ, and torchrun meets anew itself).
    """
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    one_node = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_node else "0"
    return PrefixStore(f"restart-{restart}", store), rank, size


# Below this many parameters an operation is too short to be shared: two threads won nothing on two
# quiet cores when they slept between operations, and lost a factor of ten to a busy neighbour when
# they spun.
SMALL_MODEL = 2_000_000


def default_threads(parameters: int | None = None) -> int:
    """Return how many CPU threads this process should use when nobody gave a number.

    One for a model of few `parameters`; else OMP_NUM_THREADS if set, else the usable cores per
    process on this machine, at least 1. Under torchrun OMP_NUM_THREADS tells nothing, as torchrun
    sets it to 1 where it is not set.
    """
    if parameters is not None and parameters < SMALL_MODEL:
        return 1
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if "TORCHELASTIC_RUN_ID" not in os.environ and given.isdecimal() and int(given) > 0:
        return int(given)
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def usable_cores() -> int:
    """Return the cores that this process may use: by affinity (taskset) and by CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = map(int, CPU_QUOTA.read_text().split())
        return max(1, min(cores, quota // period))
    except (OSError, ValueError, ZeroDivisionError):  # not there, or "max 100000": no limit
        return cores


def wrap(module: nn.Module, world: World) -> nn.Module:
    """Make backward() average gradients over the processes; a world of one needs no wrapper."""
    if world.size == 1:
        return module
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    with communicating():
        return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True)


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Leave gradients local, for all but the last micro-batch of a step."""
    if isinstance(module, DistributedDataParallel):
        context: AbstractContextManager[None] = module.no_sync()
        return context
    return nullcontext()


# What gloo says, in a bare RuntimeError, when the other end of a connection is gone or silent.
LOST_PEER = ("gloo", "connection", "timed out", "socket")


@contextmanager
def communicating() -> Iterator[None]:
    """Turn a back end's error about a lost or silent process into `DistributedError`."""
    try:
        yield
    except RuntimeError as error:
        if lost_peer(error):
            reason = str(error).strip().splitlines()[0][:200]
            raise DistributedError(
                f"another process of this run died or hangs ({reason}); "
                "restart with torchrun --max-restarts to resume from the last checkpoint"
            ) from error
        raise


def lost_peer(error: RuntimeError) -> bool:
    """Say whether `error` is a back end's complaint about another process."""
    if not dist.is_available():
        return False
    said = any(word in str(error).lower() for word in LOST_PEER)
    return isinstance(error, dist.DistError) or (dist.is_initialized() and said)


class Watchdog:
    """A thread that ends this process when training makes no progress for `timeout_s` seconds.

    One hanging process makes all others wait inside a collective, where no Python code of theirs
    runs. Each process therefore watches itself: when nobody called `beat` in time, the stacks of
    all its threads go to `stacks` (one file a rank) and it exits with code 7.
    """

    def __init__(self, timeout_s: float, stacks: Path) -> None:
        self.timeout_s = timeout_s
        self.stacks = stacks
        self._nap = min(1.0, timeout_s / 4)
        self._last_beat = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def beat(self) -> None:
        """Report progress."""
        self._last_beat = time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(self._nap):
            waited = time.monotonic() - self._last_beat
            if waited > self.timeout_s:
                self._end(waited)

    def _end(self, waited: float) -> None:
        try:
            self.stacks.parent.mkdir(parents=True, exist_ok=True)
            with self.stacks.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            where = f"stacks in {self.stacks}"
        except OSError as error:  # the disk may be what hangs or is full
            where = f"stacks not written: {error}"
        try:
            line = f"error: no progress for {waited:.0f} s (--dist-timeout); {where}\n"
            os.write(2, line.encode())
            # The others are about to look at their clocks too. When this process ends, theirs fail
            # with a lost connection: let them write their stacks first.
            time.sleep(2 * self._nap)
        finally:
            os._exit(DistributedError.exit_code)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a tuple, list or dict to `device`, in the background on CUDA."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        pinned = batch.pin_memory() if device.type == "cuda" else batch
        return pinned.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        values = [to_device(value, device) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch
