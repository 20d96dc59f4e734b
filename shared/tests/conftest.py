"""Fixtures for the trainer's tests: the demo program in processes of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAMS = Path(__file__).parent / "programs"
QUICK = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that sums have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def demo_path() -> Path:
    """Return the path of the demo program."""
    return PROGRAMS / "demo.py"


@dataclass
class Ended:
    """What came of a process: its return code (negative: the signal) and what it printed."""

    code: int
    output: str

    @property
    def result(self) -> dict[str, Any]:
        """The demo's result line."""
        lines = [line for line in self.output.splitlines() if line.startswith('{"digest"')]
        assert lines, self.output
        found: dict[str, Any] = json.loads(lines[-1])
        return found


class Started:
    """A running demo."""

    def __init__(self, server: "DemoServer", pid: int, log: Path) -> None:
        self.server, self.pid, self.log = server, pid, log
        self.code: int | None = None

    def send(self, signum: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, signum)

    def until(self, *texts: str, timeout: float = 120.0) -> None:
        """Wait until it has printed one of `texts`."""
        end = time.monotonic() + timeout
        while not (self.log.exists() and any(text in self.log.read_text() for text in texts)):
            assert time.monotonic() < end, f"{texts} did not come: {self.log.read_text()}"
            time.sleep(0.01)

    def wait(self) -> Ended:
        """Wait for its end."""
        if self.code is None:
            self.code = self.server.ask({"wait": self.pid})["code"]
        return Ended(self.code, self.log.read_text())


class DemoServer:
    """Starts demos (see programs/server.py); each one's log is a file in `logs`."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.count = logs, 0
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / "server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **QUICK},
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def start(self, out: Path, *flags: object, env: dict[str, str] | None = None) -> Started:
        """Start a demo that trains in `out`."""
        self.count += 1
        log = self.logs / f"{self.count}.log"
        argv = ["--out", str(out), "--device", "cpu", "--threads", "1", *map(str, flags)]
        pid = self.ask({"argv": argv, "env": env or {}, "log": str(log)})["pid"]
        return Started(self, pid, log)

    def run(
        self, out: Path, *flags: object, at: str | None = None, signum: str = "SIGKILL"
    ) -> Ended:
        """Run a demo to its end, with a signal at a kill point."""
        env = {} if at is None else {"MLE_KILL_AT": at, "MLE_KILL_SIGNAL": signum}
        return self.start(out, *flags, env=env).wait()

    def start_world(
        self, size: int, out: Path, *flags: object, env: dict[str, str] | None = None
    ) -> list[Started]:
        """Start a distributed demo as torchrun would, without its seconds."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        common |= {"LOCAL_WORLD_SIZE": str(size), **(env or {})}
        return [
            self.start(out, *flags, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(size)
        ]

    def run_world(
        self, size: int, out: Path, *flags: object, env: dict[str, str] | None = None
    ) -> list[Ended]:
        """Run a distributed demo to its end; one result a rank."""
        return [started.wait() for started in self.start_world(size, out, *flags, env=env)]

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """Return the server that runs the demo in forked processes."""
    server = DemoServer(tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture
def torchrun(demo_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the demo under torchrun with two processes."""

    def run(
        out: Path, *flags: object, restarts: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.1", str(demo_path)]
        words = ["--out", str(out), "--device", "cpu", "--threads", "1", *map(str, flags)]
        return subprocess.run(
            [sys.executable, *launcher, *words],
            env={**os.environ, **QUICK, **(env or {})},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run
