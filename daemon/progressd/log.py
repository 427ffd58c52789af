"""The log: one line an event on stderr, or a message in the journal, from progressd and the libraries alike.

What it cannot write ends nothing.

Log with `structlog.get_logger()`, an event in a few words and the rest as keys: `log.info("job started", job_id=…)`.
"""

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from progressd.config import LogSettings
from progressd.core.messages import Error, JobCreated, StateChange, StatusChange
from progressd.journal import KNOWN, Entry, Journal, check_journal_stream

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_least = logging.INFO  # the level in force
_BARE = re.compile(r'[^\s"=\\\x00-\x1f\x7f-\x9f]+')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def set_level(settings: LogSettings) -> None:
    """Take over the level of settings that have been read again."""
    global _least
    _least = _LEVELS[settings.level]
    # the libraries tell at info what progressd tells better, so theirs counts from warning on
    logging.getLogger().setLevel(max(_least, logging.WARNING))


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send all logs to `stream` (stderr) or the journal. Times are UTC, ISO 8601. Tracebacks only at level debug."""
    stream = stream or sys.stderr
    form = _form(settings.format, stream)
    sink = Journal() if form == "journal" else _Lines(stream)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exception,
    ]
    last: list[Processor] = [structlog.processors.EventRenamer("message"), *_renderers(form, stream)]
    structlog.configure(
        processors=[_drop_unimportant, *shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=True,
    )
    logging.getLogger().handlers = [_StandardHandler(sink, [*shared, *last])]
    set_level(settings)
    for name in ("hypercorn.error", "hypercorn.access", "quart.app", "quart.serving", "trio-websocket"):
        library = logging.getLogger(name)
        library.handlers, library.propagate = [], True
        library.setLevel(logging.NOTSET)


def _form(form: str, stream: TextIO) -> str:
    if form != "auto":
        return form
    if stream.isatty():
        return "console"
    return "journal" if stream is sys.stderr and check_journal_stream() else "logfmt"


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside an exception group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


class _Lines:
    """Writes lines; a full disk or a closed terminal costs the line, never a connection or the daemon."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def close(self) -> None:
        """The stream is not ours to close."""

    debug = info = warning = error = critical = log = exception = msg


class _StandardHandler(logging.Handler):
    """What libraries log, on the same way."""

    def __init__(self, sink: "_Lines | Journal", processors: Sequence[Processor]) -> None:
        super().__init__()
        self._sink: Any = sink
        self._processors = processors

    def close(self) -> None:
        self._sink.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: Any = {"event": record.getMessage(), "logger": record.name, "exc_info": record.exc_info}
            for process in self._processors:
                event = process(None, record.levelname.lower(), event)
            self._sink.msg(event)
        except Exception:
            self.handleError(record)


def _renderers(form: str, stream: TextIO) -> list[Processor]:
    match form:
        case "journal":
            return [_entry]
        case "json":
            return [_in_order, structlog.processors.JSONRenderer(ensure_ascii=False), _without_controls]
        case "logfmt":
            return [_in_order, _logfmt, _without_controls]
    console = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), event_key="message", exception_formatter=structlog.dev.plain_traceback
    )
    return [_printable, console]


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


def _logfmt(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return _words(event)


def _entry(_logger: WrappedLogger, _method: str, event: EventDict) -> Entry:
    hidden = (*KNOWN, "exception")
    return Entry.of(event, _words({key: value for key, value in event.items() if key not in hidden}))


def _words(event: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_word(value)}" for key, value in event.items())


def _word(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _without_controls(_logger: WrappedLogger, _method: str, line: Any) -> str:
    """What a client sent must not steer the terminal on which somebody reads the log; JSON lets some of it through."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


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
