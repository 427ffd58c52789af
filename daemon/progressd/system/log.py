"""The log: one line an event on stderr, or a message in the journal, from progressd and the libraries alike.

Logging never blocks and never fails: a thread writes, and lines that it cannot write are dropped and counted.

Log with `structlog.get_logger()`, an event in a few words and the rest as keys: `log.info("job started", job_id=…)`.
"""

import logging
import os
import re
import select
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from progressd.core.messages import Error, JobCreated, StateChange, StatusChange
from progressd.system.journal import KNOWN, Journal, datagram, stderr_is_journal
from progressd.system.log_queue import LogQueue

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_least = logging.INFO  # the level in force
_logfmt = structlog.processors.LogfmtRenderer(bool_as_flag=False)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def set_level(level: str) -> None:
    """Set the lowest level that is logged."""
    global _least
    _least = _LEVELS[level]
    # the libraries tell at info what progressd tells better, so theirs counts from warning on
    logging.getLogger().setLevel(max(_least, logging.WARNING))


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:  # noqa: A002
    """Send all logs to `stream` (stderr) or the journal. Times are UTC, ISO 8601. Tracebacks only at level debug."""
    stream = stream or sys.stderr or open(os.devnull, "w")  # noqa: SIM115, stderr was closed
    form = _form(format, stream)
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exception,
        structlog.processors.EventRenamer("message"),
        *_renderers(form, stream),
    ]

    def notice(dropped: int) -> bytes:
        return _rendered({"event": "log lines dropped", "lines": dropped}, "warning", processors)

    queue = LogQueue(Journal() if form == "journal" else Descriptor(stream.fileno()), notice)
    structlog.configure(
        processors=[_drop_unimportant, *processors],
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
    """Write the lines that wait, for CLOSE_TIMEOUT at most, and drop all that comes later."""
    for handler in logging.getLogger().handlers:
        handler.close()


def _form(form: str, stream: TextIO) -> str:
    if form != "auto":
        return form
    if stream.isatty():
        return "console"
    return "journal" if stream is sys.stderr and stderr_is_journal() else "logfmt"


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside an exception group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


class Descriptor:
    """A file, pipe or terminal. It stays open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, line: bytes) -> None:
        """Write a line, also where another process has set O_NONBLOCK. Raises OSError."""
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:
                writable = select.poll()
                writable.register(self._descriptor, select.POLLOUT)
                writable.poll()

    def close(self) -> None:
        """Nothing to do."""


class _StandardHandler(logging.Handler):
    """What libraries log, on the same way."""

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


def _renderers(form: str, stream: TextIO) -> list[Processor]:
    match form:
        case "journal":
            return [_datagram]
        case "json":
            return [_in_order, structlog.processors.JSONRenderer(ensure_ascii=False), _without_controls, _line]
        case "logfmt":
            return [_in_order, _logfmt, _without_controls, _line]
    console = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), event_key="message", exception_formatter=structlog.dev.plain_traceback
    )
    return [_printable, console, _line]


def _drop_unimportant(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if _LEVELS[method] < _least:
        raise structlog.DropEvent
    return event


def _exception(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A traceback for who looks for a fault, else a few words."""
    return (structlog.processors.format_exc_info if _least <= logging.DEBUG else _name_exception)(logger, method, event)


def _name_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """`error="Type: text"` instead of a traceback."""
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["error"] = "; ".join(f"{type(leaf).__name__}: {leaf}".removesuffix(": ") for leaf in leaves(error))
    return event


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = {key: event.pop(key) for key in ("timestamp", "level", "message") if key in event}
    return {**first, **event}


def _datagram(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
    hidden = (*KNOWN, "exception")
    shown = {key: value for key, value in event.items() if key not in hidden}
    return datagram(event, str(_logfmt(logger, method, shown)))


def _without_controls(_logger: WrappedLogger, _method: str, line: Any) -> str:
    """What a client sent must not steer the terminal on which somebody reads the log; JSON lets some of it through."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _line(_logger: WrappedLogger, _method: str, line: Any) -> bytes:
    return f"{line}\n".encode(errors="backslashreplace")


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: value if key == "exception" else _plain(value) for key, value in event.items()}


def _plain(value: object) -> object:
    return _CONTROL.sub(" ", value) if isinstance(value, str) else value


_log = structlog.get_logger(__name__)


def log_change(message: StateChange) -> None:
    """A line for what happened to a job."""
    if isinstance(message, JobCreated):
        _log.info("job created", job_id=message.job_id, kind=message.data.kind)
    elif isinstance(message, StatusChange):
        _log.info("job is now " + message.data.new_status, job_id=message.job_id)
    elif isinstance(message, Error):
        _log.info("job failed", job_id=message.job_id, error=message.data.message)
