"""`Job(track_tqdm=True)`: the bars of tqdm report the progress of a job while it runs."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from tqdm import TMonitor
from tqdm.std import tqdm

from progressd.client.errors import JobCancelled

Report: TypeAlias = Callable[[int, int, str], None]
"""A function that reports the steps of a bar, their total, and the description. Raises JobCancelled."""

_active = list[tuple[int, Report]]()  # the jobs, each with the thread in which it has begun
_lock = threading.Lock()
_refresh, _close = tqdm.refresh, tqdm.close


def begin(report: Report) -> None:
    """Pass the progress of bars to `report`, until `end`."""
    with _lock:
        _active.append((threading.get_ident(), report))
        tqdm.refresh, tqdm.close = _reporting_refresh, _reporting_close


def end(report: Report) -> None:
    """Undo `begin`."""
    with _lock:
        _active[:] = [one for one in _active if one[1] != report]
        if not _active:
            tqdm.refresh, tqdm.close = _refresh, _close


def _reporting_refresh(self: tqdm, *arguments: Any, **options: Any) -> Any:
    shown = _refresh(self, *arguments, **options)
    if isinstance(threading.current_thread(), TMonitor):  # its thread must not end
        with contextlib.suppress(JobCancelled):
            _pass_on(self)
    else:
        _pass_on(self)
    return shown


def _reporting_close(self: tqdm) -> None:
    if not self.disable:
        with contextlib.suppress(JobCancelled):
            _pass_on(self)
    _close(self)


def _pass_on(bar: tqdm) -> None:
    """Report a bar, unless it is inside another one."""
    here = threading.get_ident()
    with _lock:
        reports = [report for thread, report in _active if thread == here] or [report for _, report in _active]
    if reports and getattr(bar, "pos", 1) == 0:
        reports[-1](bar.n, bar.total or 0, (bar.desc or "").removesuffix(": "))
