"""`ocrmypdf --plugin progressd.integrations.ocrmypdf`: each run is a job. The bars in the terminal stay."""

import atexit
import logging
import os
import time
from collections.abc import Generator
from typing import Any, Final

from progressd.client.errors import JobCancelled
from progressd.client.job import Job
from progressd.detect.preset_loader import Presets
from progressd.detect.reading import Reading
from progressd.detect.track import Track
from progressd.integrations import required

with required("ocrmypdf", "OCRmyPDF"):
    from ocrmypdf import hookimpl

__all__ = ["check_options", "get_progressbar_class"]

CLOCK: Final = 2.0  # seconds by which the times of a file may differ from the clock


class _Run(logging.Handler):
    """One run of OCRmyPDF. No hook is called at its end, so the output file and the logged errors decide."""

    current: "_Run | None" = None  # of this process

    def __init__(self, input_file: object, output_file: object) -> None:
        super().__init__(logging.ERROR)
        self._output = output_file
        self._begun = time.time()
        self._errors = list[str]()
        self._track = Track(getattr(Presets().find("ocrmypdf"), "phases", {}))
        name = os.path.basename(str(input_file)) if isinstance(input_file, str | os.PathLike) else None
        self._job = Job("ocrmypdf", input_filename=name, stop_when_cancelled=False).start()
        logging.getLogger("ocrmypdf").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Note an error."""
        self._errors.append(record.getMessage())

    def move(self, phase: str, current: float, total: float | None) -> None:
        """Report the progress of a phase. Raises JobCancelled."""
        progress = self._track.move(Reading(phase=phase, current=current, total=total))
        self._job.progress(progress.current_step, progress.total_steps, progress.step_name, progress.percent)
        if self._job.cancelled:
            raise JobCancelled(f"job {self._job.id} was cancelled")

    def end(self) -> None:
        """End the job."""
        logging.getLogger("ocrmypdf").removeHandler(self)
        errors = "; ".join(dict.fromkeys(self._errors)) or "no output was written"
        self._job.end(None if self._succeeded() else RuntimeError(f"ocrmypdf: {errors}"))

    def _succeeded(self) -> bool:
        if not isinstance(self._output, str | os.PathLike) or self._output == "-":
            return not self._errors
        try:
            return os.stat(self._output).st_mtime >= self._begun - CLOCK
        except OSError:
            return False


@atexit.register
def _end() -> None:
    run, _Run.current = _Run.current, None
    if run is not None:
        run.end()


@hookimpl
def check_options(options: Any) -> None:
    """Begin a run."""
    _end()
    _Run.current = _Run(options.input_file, options.output_file)


@hookimpl(wrapper=True)
def get_progressbar_class() -> Generator[None, Any, type[Any]]:
    """Return the class of bars that OCRmyPDF would use, with reports."""
    shown = yield

    class ReportingBar(shown):  # type: ignore[misc, valid-type]
        """A bar that also reports a phase of the job."""

        def __init__(self, *, total: float | None, desc: str | None = None, **options: Any) -> None:
            super().__init__(total=total, desc=desc, **options)
            self._phase = desc or ""
            self._total = total
            self._done = 0.0

        def update(self, n: float = 1, *, completed: float | None = None) -> None:
            super().update(n, completed=completed)
            self._done = self._done + n if completed is None else completed
            if _Run.current is not None:
                _Run.current.move(self._phase, self._done, self._total)

    return ReportingBar
