"""Apply a function to a stream of items in worker processes, results in order, memory bounded.

    with Workers(function, 4) as workers:
        for result in workers.map(items): ...

The outcome is that of `map(function, items)`, for any number of workers.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from minbpe.errors import ResourceError, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items handed to each worker beyond the one it works on, so that it never waits."""

MAX_WORKERS = 256
"""More are a slip of the finger, and would fill the memory before they are of use."""

_function: Callable[[Any], Any]  # in a worker: what it applies


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers(Generic[Item, Result]):
    """A context manager with `number` processes that apply `function`; 0 is this process alone.

    `function` reaches the workers once: by fork on Linux, where it costs nothing, elsewhere by
    pickle. Enter the block before threads start (a progress bar is one). Leaving it by an error
    ends the workers at once, whatever they are at; they also end when this process is killed.

    Raises UsageError for a number below 0 or above `MAX_WORKERS`, ResourceError when the system
    refuses a process.
    """

    def __init__(self, function: Callable[[Item], Result], number: int) -> None:
        if not 0 <= number <= MAX_WORKERS:
            raise UsageError(f"workers={number} must be from 0 (none) to {MAX_WORKERS}")
        self.function, self.number = function, number
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.number:
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            self._pool = ProcessPoolExecutor(self.number, context, _start, (self.function,))
            try:
                self._pool.submit(os.getpid)  # forks all workers now, before any thread
            except (OSError, RuntimeError) as error:  # RuntimeError: it can't start a thread
                self._kill()
                raise ResourceError(
                    f"{self.number} worker processes cannot be started ({error}); use fewer workers"
                ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        if error is not None:
            self._kill()
        self._pool.shutdown(cancel_futures=True)

    def _kill(self) -> None:
        """End the workers: Python 3.14's `kill_workers`; `shutdown` waits for what is begun."""
        assert self._pool is not None
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        # Before Python 3.11.5 `shutdown` waits for ever for items that nobody reads any more; since
        # then the pool closes this itself (CPython issue 94777).
        if sys.version_info < (3, 11, 5):
            with contextlib.suppress(OSError):
                self._pool._call_queue._reader.close()  # type: ignore[attr-defined]

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield `function(item)` for each item, in order; a few items are taken ahead.

        Raises what `function` raises, and ResourceError when a worker was killed.
        """
        if self._pool is None:
            yield from map(self.function, items)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(_apply, item))
                if len(waiting) > (1 + AHEAD) * self.number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise ResourceError(
                "a worker process was killed; when memory is short, use fewer workers"
            ) from None


def _start(function: Callable[[Any], Any]) -> None:
    """Make this process a worker: deaf to Ctrl-C, which is the parent's to handle."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _apply(item: Any) -> Any:
    return _function(item)
