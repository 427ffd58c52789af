"""`tqdm` and `trange` instead of those of tqdm: each outermost bar is also a job."""

import io
import sys
from collections.abc import Mapping
from typing import Any

from progressd.client.errors import JobCancelled
from progressd.client.job import Job
from progressd.integrations import required

with required("tqdm", "tqdm"):
    from tqdm import tqdm as Bar  # noqa: N812, the class has the name that its users import

__all__ = ["tqdm", "trange"]


class tqdm(Bar):  # type: ignore[misc]  # noqa: N801
    """A tqdm bar that also reports a job, even if the bar is disabled. A bar inside another one reports nothing.

    `job`: arguments of `Job`. The name of the job is the bar's description, unless `job` has one. The end of the bar
    completes the job. An exception of a `with` block or of the iterable fails it. A loop that is left early cancels it.
    Iterating and `update` raise JobCancelled if the job is cancelled.
    """

    _job: Job | None = None

    def __init__(self, *args: Any, job: Mapping[str, Any] | None = None, **options: Any) -> None:
        disable, file = options.get("disable", False), options.get("file") or sys.stderr
        if disable or (disable is None and not file.isatty()):  # a disabled bar would not count
            options |= {"disable": False, "file": _Nowhere()}
        self._error: BaseException | None = None
        self._outer_error = sys.exc_info()[1]
        super().__init__(*args, **options)
        if self.pos == 0:
            name = self.desc.removesuffix(": ") if self.desc else "job"
            self._job = Job(**{"name": name, "stop_when_cancelled": False, **(job or {})})
            self._job.start()
            self._report()

    def display(self, *args: Any, **options: Any) -> Any:
        """Show the bar, and report it."""
        self._report()
        return super().display(*args, **options)

    def update(self, n: float | None = 1) -> Any:
        """Add to the progress. Raises JobCancelled."""
        displayed = super().update(n)
        if self._job is not None and self._job.cancelled:  # not in `display`, which tqdm calls from another thread, too
            raise JobCancelled(f"job {self._job.id} was cancelled")
        return displayed

    def close(self) -> None:
        """End the bar and its job."""
        super().close()
        job, error = self._job, self._error
        if job is not None:
            self._report()
            self._job = None
            if error is None and sys.exc_info()[1] is not self._outer_error:  # of the iterable or a loop left early
                error = sys.exc_info()[1]
            job.end(error)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._error = error
        super().__exit__(kind, error, traceback)

    def _report(self) -> None:
        if self._job is not None:
            self._job.progress(self.n, self.total or 0, self.postfix or "", unit=self.unit or None)


def trange(*args: int, **options: Any) -> tqdm:
    """Return a bar for `range(*args)`."""
    return tqdm(range(*args), **options)


class _Nowhere(io.StringIO):
    """A file that discards all output."""

    def write(self, text: str) -> int:
        return len(text)
