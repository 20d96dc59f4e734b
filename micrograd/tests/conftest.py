"""What the tests share."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

import pytest

from micrograd import engine, nn

Interrupt: TypeAlias = Callable[[Callable[[], None], int], bool]


@pytest.fixture
def interrupt() -> Interrupt:
    """Return a function that runs another up to a line, and tells whether it got that far."""
    return _interrupt


def _interrupt(function: Callable[[], None], at: int) -> bool:
    """Raise KeyboardInterrupt at the `at`th line that `function` runs in engine or nn, if any."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in (engine.__file__, nn.__file__):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
