"""Work in one pass of the event loop, counted in calls."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import trio


class Calls(trio.abc.Instrument):
    """Count calls of a plain function: `total`, and `most` in one pass of the event loop."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.total = self.most = 0
        self._code = function.__code__
        self._before = 0

    def before_io_wait(self, timeout: float) -> None:
        self.most = max(self.most, self.total - self._before)
        self._before = self.total

    def profile(self, frame: FrameType, event: str, arg: Any) -> None:
        self.total += event == "call" and frame.f_code is self._code


@contextmanager
def counted(function: Callable[..., object]) -> Generator[Calls]:
    """Count the calls in this thread within this."""
    calls, before = Calls(function), sys.getprofile()
    trio.lowlevel.add_instrument(calls)
    sys.setprofile(calls.profile)
    try:
        yield calls
    finally:
        sys.setprofile(before)
        trio.lowlevel.remove_instrument(calls)
