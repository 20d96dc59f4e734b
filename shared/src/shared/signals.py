"""SIGINT and SIGTERM as a request that the training loop grants between two steps."""

import os
import signal
import threading
from types import FrameType

from shared.errors import Interrupted


class StopRequest:
    """Within `with`, the first SIGINT or SIGTERM is remembered, and the second exits at once.

    The loop asks `signum` (0: go on) and stops where nothing is lost. While `at_once` is true
    there is nothing to lose, and the first signal raises `Interrupted` on the spot; the `with`
    block raises it again if someone, like a compiler, has wrapped it into an error of its own.
    `torchrun` passes a Ctrl-C on as SIGINT and SIGTERM; under it, the two count as one.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.at_once = False
        self._raised: Interrupted | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal() returned
        if self._raised is not None and error is not None and error is not self._raised:
            raise self._raised from error

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum and (signum == self.signum or "TORCHELASTIC_RUN_ID" not in os.environ):
            os._exit(128 + signum)
        self.signum = self.signum or signum
        name = signal.Signals(signum).name
        if self.at_once:
            self._raised = Interrupted(f"{name} before the first step: nothing to save", signum)
            raise self._raised
        # Not print(): the signal may have come in the middle of one.
        os.write(2, f"{name}: saving after this step; once more to exit at once\n".encode())
