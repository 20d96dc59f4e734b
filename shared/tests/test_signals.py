"""The first signal asks, the second one ends."""

import os
import signal
from collections.abc import Callable

import pytest

from shared.errors import Interrupted
from shared.signals import StopRequest


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked process; return its exit code (99 if it came back)."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered_and_said(
    signum: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is raised; afterwards the old handlers are back."""
    before = signal.getsignal(signum)
    with StopRequest() as stop:
        assert stop.signum == 0
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
        assert signal.getsignal(signum) != before
    assert signal.getsignal(signum) == before
    assert f"{signum.name}: saving after this step" in capfd.readouterr().err


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_exits_at_once(second: signal.Signals) -> None:
    """With 128 + its number, whatever the program is doing."""

    def twice() -> None:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), second)

    assert in_child(twice) == 128 + second


def test_under_torchrun_its_two_signals_for_one_ctrl_c_count_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGINT and then SIGTERM go on; SIGINT twice does not."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGINT

    def twice() -> None:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    assert in_child(twice) == 130


def compiling(stop: StopRequest, signum: signal.Signals, wrapped: bool) -> None:
    """Get a signal before the first step; perhaps in a compiler, which wraps all errors."""
    with stop:
        stop.at_once = True
        try:
            os.kill(os.getpid(), signum)
        except Interrupted as error:
            if wrapped:
                raise RuntimeError("the back end failed") from error
            raise


@pytest.mark.parametrize("wrapped", [False, True])
def test_at_once_raises_on_the_spot_and_through_what_wraps_it(wrapped: bool) -> None:
    """The interruption comes out of the block, whatever became of it inside."""
    with pytest.raises(Interrupted) as raised:
        compiling(StopRequest(), signal.SIGTERM, wrapped)
    assert raised.value.exit_code == 143


def test_other_errors_pass_through() -> None:
    """Without a signal, errors keep their type."""
    with pytest.raises(RuntimeError, match="mine"), StopRequest():
        raise RuntimeError("mine")
