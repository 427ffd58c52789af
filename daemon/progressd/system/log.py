"""The log of progressd and its libraries: one line per event on stderr, or a message in the journal.

Logging never blocks and never raises: a thread writes, and lines that it cannot write are dropped and counted.

Log with `structlog.get_logger()`. An event is a short constant text with keys: `log.info("job started", job_id=…)`.
"""

import logging
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from progressd.core.errors import leaves
from progressd.core.messages import Error, JobCreated, StateChange, StatusChange
from progressd.system.fs import write_all
from progressd.system.log_output import JOURNAL, KNOWN, Journal, LogQueue, datagram, stderr_is_journal

_LEVELS: Final = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()}
_min_level = logging.INFO
_logfmt = structlog.processors.LogfmtRenderer(bool_as_flag=False)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def set_level(level: str) -> None:
    """Set the lowest level that is logged."""
    global _min_level
    _min_level = _LEVELS[level]
    # progressd itself logs what the libraries log at info
    logging.getLogger().setLevel(max(_min_level, logging.WARNING))


def configure(
    level: str = "info",
    format: str = "auto",  # noqa: A002
    stream: TextIO | None = None,
    journal: str = JOURNAL,
) -> None:
    """Send all logs to `stream` (stderr) or the journal. Times are UTC, ISO 8601. Tracebacks only at level debug."""
    stream = stream or sys.stderr or open(os.devnull, "w")  # noqa: SIM115, stderr was closed
    chosen = _format(format, stream)
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exception,
        structlog.processors.EventRenamer("message"),
        *_renderers(chosen, stream),
    ]

    def notice(dropped: int) -> bytes:
        return _rendered({"event": "log lines dropped", "lines": dropped}, "warning", processors)

    if chosen == "journal":
        output = Journal(journal)
        queue = LogQueue(output.write, notice, output.close)
    else:
        queue = LogQueue(partial(write_all, stream.fileno()), notice)
    structlog.configure(
        processors=[_filter_level, *processors],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=lambda *_: queue,
        cache_logger_on_first_use=True,
    )
    logging.getLogger().handlers = [_StandardHandler(queue, processors)]
    set_level(level)
    for name in ("hypercorn.error", "hypercorn.access", "quart.app", "quart.serving", "trio-websocket"):
        library = logging.getLogger(name)
        library.handlers, library.propagate = [], True
        library.setLevel(logging.NOTSET)


def close() -> None:
    """Write the queued lines, for at most CLOSE_TIMEOUT, and drop later lines."""
    for handler in logging.getLogger().handlers:
        handler.close()


def _format(configured: str, stream: TextIO) -> str:
    if configured != "auto":
        return configured
    if stream.isatty():
        return "console"
    return "journal" if stream is sys.stderr and stderr_is_journal() else "logfmt"


class _StandardHandler(logging.Handler):
    """Pass log records of libraries to the queue."""

    def __init__(self, queue: LogQueue, processors: Sequence[Processor]) -> None:
        super().__init__()
        self._queue = queue
        self._processors = processors

    def close(self) -> None:
        self._queue.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = {"event": record.getMessage(), "logger": record.name, "exc_info": record.exc_info}
            self._queue.msg(_rendered(event, record.levelname.lower(), self._processors))
        except Exception:
            self.handleError(record)


def _rendered(event: Any, method: str, processors: Sequence[Processor]) -> bytes:
    for process in processors:
        event = process(None, method, event)
    return bytes(event)


def _renderers(format_: str, stream: TextIO) -> list[Processor]:
    match format_:
        case "journal":
            return [_datagram]
        case "json":
            return [_sort_keys, structlog.processors.JSONRenderer(ensure_ascii=False), _escape_controls, _line]
        case "logfmt":
            return [_sort_keys, _logfmt, _escape_controls, _line]
    console = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), event_key="message", exception_formatter=structlog.dev.plain_traceback
    )
    return [_strip_controls, console, _line]


def _filter_level(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if _LEVELS[method] < _min_level:
        raise structlog.DropEvent
    return event


def _exception(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Render an exception: as a traceback at level debug, otherwise as `error="Type: text"`."""
    if _min_level <= logging.DEBUG:
        return structlog.processors.format_exc_info(logger, method, event)
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["error"] = "; ".join(f"{type(leaf).__name__}: {leaf}".removesuffix(": ") for leaf in leaves(error))
    return event


def _sort_keys(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = {key: event.pop(key) for key in ("timestamp", "level", "message") if key in event}
    return {**first, **event}


def _datagram(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
    hidden = (*KNOWN, "exception")
    shown = {key: value for key, value in event.items() if key not in hidden}
    return datagram(event, str(_logfmt(logger, method, shown)))


def _escape_controls(_logger: WrappedLogger, _method: str, line: Any) -> str:
    """Escape control characters, which could control a reader's terminal. JSON does not escape all of them."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _line(_logger: WrappedLogger, _method: str, line: Any) -> bytes:
    return f"{line}\n".encode(errors="backslashreplace")


def _strip_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    texts = {key: value for key, value in event.items() if isinstance(value, str) and key != "exception"}
    return {**event, **{key: _CONTROL.sub(" ", value) for key, value in texts.items()}}


_log = structlog.get_logger(__name__)


def log_change(message: StateChange) -> None:
    """Log a state change of a job."""
    if isinstance(message, JobCreated):
        _log.info("job created", job_id=message.job_id, kind=message.data.kind)
    elif isinstance(message, StatusChange):
        _log.info("job status changed", job_id=message.job_id, status=message.data.new_status)
    elif isinstance(message, Error):
        _log.info("job failed", job_id=message.job_id, error=message.data.message)
