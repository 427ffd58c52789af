"""Messages and jobs as text, in the language of the user. Text from clients cannot control the terminal."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final, TextIO
from urllib.parse import urlsplit

from msgspec import UNSET, UnsetType

from progressd.cli.language import later, sentence, t
from progressd.core.close_codes import DRAINING, SLOW_CONSUMER, TIMED_OUT, TRY_AGAIN
from progressd.core.messages import (
    Completed,
    Error,
    JobCreated,
    JobDeleted,
    JobMessage,
    JobStatus,
    Message,
    Progress,
    ProgressData,
    ServerShutdown,
    ServerStatus,
    StatusChange,
    TaskData,
    type_of,
)

COLORS: Final = {
    JobStatus.QUEUED: "dim",
    JobStatus.PROCESSING: "cyan",
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "yellow",
}

CLOSED: Final = {  # the reasons of close codes, for people
    DRAINING.reason: later("the daemon is stopping"),
    TRY_AGAIN.reason: later("the daemon cannot read its database at the moment"),
    SLOW_CONSUMER.reason: later("this program was too slow"),
    TIMED_OUT.reason: later("the daemon did not hear from this program"),
}
GAP: Final = "  "  # between two columns
SIZES: Final = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
WIDE: Final = 1.6  # an interval is shown if its end is this many times its beginning

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def printable(text: object) -> str:
    """Return the text on one line, without control characters."""
    return _CONTROL.sub(" ", str(text)).strip()


def can_redraw(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether the stream is a terminal on which lines can be drawn again."""
    return stream.isatty() and environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def reconnecting(reason: str) -> str:
    """Return the notice for a lost connection; `reason`: "" if it is not known."""
    if not reason:
        return t("connection lost; reconnecting")
    why = t(CLOSED[reason]) if reason in CLOSED else printable(reason)
    return t("connection lost: {why}; reconnecting", why=why)


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield each row as a line with aligned columns, without the columns that are empty in every row."""
    from rich.cells import cell_len  # not for --help

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True) if width)
        yield GAP.join(cells).rstrip()


def line(message: Message, url: str) -> str:
    """Return a message on one line: the job, its type and its content."""
    job_id = message.job_id if isinstance(message, JobMessage | JobDeleted) else "-"
    return f"{job_id} {type_of(message)} {describe(message, url)}".rstrip()


def change(message: Message, url: str) -> str:
    """Return a message as a change for people; "" if the message that follows says the same."""
    match message:
        case JobCreated():
            return "created"
        case StatusChange(_, data) if data.new_status in (JobStatus.COMPLETED, JobStatus.FAILED):
            return ""
        case StatusChange(_, data):
            return {JobStatus.QUEUED: "waiting again", JobStatus.PROCESSING: "started"}.get(
                data.new_status, str(data.new_status)
            )
        case Progress():
            return describe(message, url) or "running"
        case Completed():
            return f"completed {describe(message, url)}"
        case Error():
            return f"failed: {describe(message, url)}"
        case JobDeleted():
            return "deleted"
        case ServerShutdown() | ServerStatus():
            return describe(message, url)
    return ""


def describe(message: Message, url: str) -> str:
    """Return the content of a message as text."""
    match message:
        case JobCreated(_, data):
            return printable(": ".join(filter(None, [data.kind, data.name or data.input_filename])))
        case StatusChange(_, data):
            return f"{data.old_status} -> {data.new_status}"
        case Progress(_, data):
            moved = percent(data.percent, data.total_steps)
            step = printable(" ".join(filter(None, [moved, steps(data), where(data)])))
            return t(", ").join(filter(None, [step, rate(data.rate, data.unit), time_left(data)]))
        case Completed(_, data):
            parts = [t("in {time}", time=seconds(data.elapsed_seconds))]
            parts += [t("{n} page | {n} pages", n=data.page_count)] if data.page_count else []
            result = f": {result_url(data.download_url, url)}" if data.download_url else ""
            return t(", ").join(parts) + result
        case Error(_, data):
            return said(data.message)
        case ServerShutdown(data):
            return t("{reason}, within {n} s", reason=said(data.reason), n=data.countdown_secs)
        case ServerStatus(data):
            return said(data.error) if data.error else data.status
    return ""


def status(of: JobStatus | str) -> str:
    """Return the word for a status."""
    return t(str(of))


def said(english: object, code: str = "") -> str:
    """Return a sentence of the daemon or of a producer on one line, in the language of the user if it is known."""
    return printable(sentence(str(english), code))


def short(job_id: str) -> str:
    """Return the abbreviated id."""
    return job_id[:8]


def percent(done: int, total_steps: int) -> str:
    """Return the percentage; "" while neither a percentage nor a number of steps is known."""
    return f"{done}%" if done or total_steps else ""


def steps(data: ProgressData) -> str:
    """Return the step and the total, if known."""
    return counts(data.current_step, data.total_steps, data.unit)


def counts(current: int, total: int, unit: str | UnsetType) -> str:
    """Return counts as text: 3/12, 3/12 pages, 1.2/3.4 GB."""
    if not (current or total):
        return ""
    if unit == "B":
        scale = next((scale for scale in SIZES if max(current, total) >= scale[0]), (1, "B"))
        numbers = [f"{number / scale[0]:.1f}" if scale[0] > 1 else str(number) for number in (current, total)]
    else:
        scale, numbers = (1, "" if unit is UNSET else printable(unit)), [str(current), str(total)]
    return f"{numbers[0]}/{numbers[1]} {scale[1]}".rstrip() if total else f"{numbers[0]} {scale[1]}".rstrip()


def rate(value: float | UnsetType, unit: str | UnsetType) -> str:
    """Return a rate as text: 12.4 MB/s, 3.1 pages/s, 2.4 pages/min; "" if it is unknown."""
    if value is UNSET or unit is UNSET:
        return ""
    if unit == "B":
        factor, name = next((scale for scale in SIZES if value >= scale[0]), (1, "B"))
        return f"{value / factor:.{int(factor > 1)}f} {name}/s"
    word, per = printable(unit), "s"
    if 0 < value < 0.1:
        value, per = (value * 60, "min") if value * 60 >= 0.1 else (value * 3600, "h")
    return f"{value:,.{0 if value >= 100 else 1}f} {word}/{per}"


def where(data: ProgressData) -> str:
    """Return the phase and the name of the step."""
    return phase_and_step(data.phase or "", data.step_name)


def phase_and_step(phase: str, step: str) -> str:
    """Return both on one line. A step may have the name of its phase."""
    return printable(step if step.startswith(phase) else f"{phase}: {step}" if step else phase)


def task_detail(task: TaskData) -> str:
    """Return the progress of a task: everything that is known except its name."""
    if task.state is not JobStatus.PROCESSING:
        return status(task.state)
    return counts(task.current, task.total, task.unit)


def task_percent(task: TaskData) -> int | None:
    """Return the percentage of a task; None if unknown."""
    if task.state is JobStatus.COMPLETED:
        return 100
    return min(100, 100 * task.current // task.total) if task.total else None


def time_left(data: ProgressData, passed: float = 0.0, *, brief: bool = False) -> str:
    """Return the remaining time if known, or that the job is stalled. `passed`: the seconds since the message."""
    if data.stalled:
        return t("stalled")
    if data.percent >= 100:
        return ""
    if data.eta is not UNSET:
        low, high = max(0.0, data.eta.low - passed), data.eta.high - passed
        return remaining(data.eta.seconds - passed, low, high, brief=brief)
    left = (data.eta_seconds or 0.0) - passed  # of an older daemon
    return remaining(left, left, left, brief=brief)


def remaining(left: float, low: float, high: float, *, brief: bool = False) -> str:
    """Return a remaining time: about 4 min left, or 3–6 min left if it is uncertain. The times are in seconds.

    Return "" if no time remains. The page formats it in the same way. `brief`: only the time, for a column.
    """
    if left <= 0:
        return ""
    form = t("{time} left")
    if left < 10 or high < WIDE * low:
        form = t("about {time} left") if left >= 20 else form
        time = _rounded(left, left) if left >= 20 else t("{n} s", n=math.ceil(left))
    else:
        first, time = _rounded(low, high).split()[0], _rounded(high, high)
        if first == time.split()[0]:
            form = t("about {time} left")
        elif float(first):
            time = f"{first}–{time}"
        elif brief:
            time = t("up to {time}", time=time)
        else:
            form = t("up to {time} left")
    return time if brief else form.format(time=time)


def _rounded(value: float, largest: float) -> str:
    """Return a duration in the unit that fits the largest duration."""
    if largest < 90:
        return t("{n} s", n=math.ceil(value / 5) * 5 if value >= 20 else round(value))
    if largest < 5400:
        return t("{n} min", n=round(value / 60))
    return t("{n} h", n=f"{value / 3600:.1f}")


def seconds(value: float) -> str:
    """Return a duration as text: less than 0.1 s, 3.2 s, 45 s, 2 min 5 s, 1 h 3 min."""
    if value < 0.05:
        return t("less than {n} s", n=0.1)
    if value < 9.95:
        return t("{n} s", n=f"{value:.1f}")
    whole = round(value)
    if whole < 60:
        return t("{n} s", n=whole)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return t("{m} min {s} s", m=minutes, s=rest)
    return t("{h} h {m} min", h=minutes // 60, m=minutes % 60)


def stopwatch(value: float) -> str:
    """Return an elapsed time in full seconds, for a number that changes once a second."""
    whole = max(0, math.floor(value))
    return t("{n} s", n=whole) if whole < 60 else seconds(whole)


def result_url(path: str, url: str) -> str:
    """Return the URL of a result."""
    if "://" in path:
        return printable(path)
    base = urlsplit(url).path.rstrip("/")  # `path` has this prefix if the daemon knows it, not only a proxy
    return printable(url.rstrip("/").removesuffix(base if path.startswith(f"{base}/") else "") + path)


def name(job: dict[str, Any]) -> str:
    """Return the name of a job of the REST API."""
    return printable(job.get("name") or job.get("input_filename") or job["kind"])


def outcome(job: dict[str, Any]) -> str:
    """Return the error of a job of the REST API, the URL of a result on another server, or the remaining time."""
    path = job.get("output_path", "")
    if (position := job.get("queue_position")) is not None:
        if (start := job.get("expected_start")) is not None:
            return t("number {n} in the queue, may start at {time}", n=position, time=short_time(start))
        return t("number {n} in the queue", n=position)
    if (eta := job.get("progress", {}).get("eta")) is not None and job["progress"]["percent"] < 100:
        return remaining(eta["seconds"], eta["low"], eta["high"])
    return said(job["error"]) if job.get("error") else printable(path if "://" in path else "")


def local_time(text: str) -> str:
    """Return a time of the REST API (RFC 3339) in the local time zone."""
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"


def short_time(text: str, today: date | None = None) -> str:
    """Return the time of day if the time is today, otherwise the date."""
    day, _, time = local_time(text).partition(" ")
    return time if day == str(today or date.today()) else day
