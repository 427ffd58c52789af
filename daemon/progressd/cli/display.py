"""Show messages as bars on a terminal, as lines in a pipe, or as JSON."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Self

import click
from msgspec import UNSET
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.styled import Styled
from rich.table import Column, Table
from rich.text import Text

from progressd.cli import text
from progressd.cli.language import english, t
from progressd.client.watcher import Disconnected, Received
from progressd.core.messages import (
    Completed,
    Error,
    Hello,
    JobCreated,
    JobDeleted,
    JobMessage,
    JobStatus,
    Message,
    PagePreview,
    ProgressData,
    Resync,
    ServerShutdown,
    ServerStatus,
    StatusChange,
    ends_job,
)
from progressd.core.messages import Progress as ProgressMessage

BAR_WIDTH: Final = 24  # characters, on a wide terminal
MIN_WIDTH: Final = 80  # columns for ids, names, wide bars, rates and steps
STEP_WIDTH: Final = 60  # columns for names, bars and steps
NAME_WIDTH: Final = 20  # columns of a name on a terminal with MIN_WIDTH; half of what a wider one adds
PERCENT_WIDTH: Final = 4  # columns
LEFT_WIDTH: Final = 17  # columns of the time left, such as "about 59 min left"
RESERVED_LINES: Final = 3  # lines for a notice above the bars, the number of hidden bars, and the cursor


class Display(ABC):
    """Show messages within a `with` block."""

    def __init__(self) -> None:
        self._disconnected = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027, lines have nothing to close
        pass

    def show(self, received: Received) -> None:
        """Show one message."""
        if self._disconnected:
            self._disconnected = False
            self.notice(t("reconnected"))
        self._print(received)

    def disconnected(self, lost: Disconnected) -> None:
        """Show, once, that the connection is lost."""
        if not self._disconnected:
            self._disconnected = True
            self.notice(text.reconnecting(lost.reason))

    def name_job(self, job_id: str, name: str) -> None:  # noqa: B027, lines have no names
        """Note the name of a job."""

    def hide(self, message: Message) -> None:  # noqa: B027, only lines of all jobs need their names
        """Note a message that is not shown."""

    def job_deleted(self, job_id: str) -> None:
        """Report that a job was deleted before its end was shown."""
        self.notice(t("job {id} was deleted", id=text.short(job_id)))

    @abstractmethod
    def _print(self, received: Received) -> None:
        """Print one message."""

    @abstractmethod
    def notice(self, sentence: str) -> None:
        """Print a sentence about the connection or a job."""

    @abstractmethod
    def print_line(self, line: str) -> None:
        """Print a line of the command's output."""


class LineDisplay(Display):
    """Print each message as a line of text, or its JSON as it arrived. Programs read it, so it is English."""

    def __init__(self, url: str, *, as_json: bool) -> None:
        super().__init__()
        self._url = url
        self._as_json = as_json

    def _print(self, received: Received) -> None:
        if self._as_json:
            click.echo(received.text)
        elif received.message is not None and not isinstance(received.message, PagePreview | Hello):  # no text
            with english():
                click.echo(text.line(received.message, self._url))

    def notice(self, sentence: str) -> None:
        click.echo(sentence, err=True)

    def print_line(self, line: str) -> None:
        click.echo(line)


class ChangeDisplay(LineDisplay):
    """Print each change of a job as a line: time, name, change and job id, with tabs between them."""

    def __init__(self, url: str) -> None:
        super().__init__(url, as_json=False)
        self._names = dict[str, str]()  # of unfinished jobs

    def hide(self, message: Message) -> None:
        self._name(message)

    def _print(self, received: Received) -> None:
        message = received.message
        if message is None:
            return
        name, job_id = self._name(message), getattr(message, "job_id", "-")
        with english():
            change = text.change(message, self._url)
        if not change:
            return
        when = getattr(message, "time", UNSET)
        time = datetime.now(UTC) if when is UNSET else when
        click.echo(f"{time.astimezone().isoformat(timespec='seconds')}\t{name}\t{change}\t{job_id}")

    def _name(self, message: Message) -> str:
        """Return the name of the job of a message."""
        if not isinstance(message, JobMessage | JobDeleted):
            return "-"
        if isinstance(message, JobCreated):
            data = message.data
            self._names[message.job_id] = text.printable(data.name or data.input_filename or data.kind)
        if isinstance(message, JobDeleted) or ends_job(message):
            return self._names.pop(message.job_id, text.short(message.job_id))
        return self._names.get(message.job_id, text.short(message.job_id))


class BarDisplay(Display):
    """Show a live bar for each unfinished job, and above the bars a line for each finished job."""

    def __init__(self, url: str, names: Mapping[str, str], console: Console | None = None) -> None:
        super().__init__()
        self._url = url
        self._names = dict(names)  # job names by job id
        self._bars: dict[str, TaskID] = {}
        self._progress = _Screen(console or Console(), "" if names else t("waiting for jobs"))
        for job_id in names:
            self._bar(job_id)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def name_job(self, job_id: str, name: str) -> None:
        self._names[job_id] = text.printable(name)

    def show(self, received: Received) -> None:
        """See Display."""
        self._progress.dimmed = False
        super().show(received)

    def disconnected(self, lost: Disconnected) -> None:
        """See Display. The last state stays, dimmed."""
        self._progress.dimmed = True
        super().disconnected(lost)

    def _print(self, received: Received) -> None:
        match received.message:
            case ServerShutdown(data):
                self.notice(text.said(data.reason))
            case ServerStatus(data):
                self.notice(text.said(data.error) if data.error else t("the daemon has recovered"))
            case Resync():  # the current state follows
                for bar in self._bars.values():
                    self._progress.remove_task(bar)
                self._bars.clear()
            case JobCreated(job_id, data):
                self._names[job_id] = text.printable(data.name or data.input_filename or data.kind)
                self._bar(job_id)
            case ProgressMessage(job_id, data):
                moved = text.percent(data.percent, data.total_steps)
                step = "  ".join(filter(None, [text.steps(data), text.where(data)]))
                self._move(job_id, data.percent if moved else None, step, data)
            case StatusChange(job_id, data) if data.new_status is JobStatus.CANCELLED:
                self._finish(received.message, data.new_status)
            case StatusChange(job_id, data) if not data.new_status.finished:
                self._move(job_id, None, text.status(data.new_status))
            case Completed():
                self._finish(received.message, JobStatus.COMPLETED)
            case Error():
                self._finish(received.message, JobStatus.FAILED)
            case JobDeleted(job_id) if job_id in self._bars:  # after its end, while the connection was lost
                self.job_deleted(job_id)

    def job_deleted(self, job_id: str) -> None:
        """See Display."""
        self._remove(job_id)
        super().job_deleted(job_id)

    def notice(self, sentence: str) -> None:
        self._progress.console.print(Text(sentence, style="yellow"))

    def print_line(self, line: str) -> None:
        self._progress.console.print(Text(line), soft_wrap=True)

    def _bar(self, job_id: str) -> TaskID:
        if job_id not in self._bars:
            name = self._names.get(job_id, "")
            self._bars[job_id] = self._progress.add_task(
                text.status(JobStatus.QUEUED),
                total=100,
                name=name,
                id=text.short(job_id),
                known=False,
                data=None,
                moved_at=0.0,
            )
        return self._bars[job_id]

    def _move(self, job_id: str, percent: int | None, step: str, data: ProgressData | None = None) -> None:
        """Update a bar; `percent`: None if unknown."""
        self._progress.update(
            self._bar(job_id),
            completed=percent or 0,
            known=percent is not None,
            description=step,
            data=data,
            moved_at=self._progress.get_time(),
        )

    def _remove(self, job_id: str) -> str:
        """Remove a job's bar, and return the job's name."""
        if (bar := self._bars.pop(job_id, None)) is not None:
            self._progress.remove_task(bar)
        return self._names.pop(job_id, "")

    def _finish(self, last: JobMessage, status: JobStatus) -> None:
        name = " ".join(filter(None, [text.short(last.job_id), self._remove(last.job_id)]))
        detail = "" if status is JobStatus.CANCELLED else text.describe(last, self._url)
        ended = Text.assemble((text.status(status), text.COLORS[status]), f" {name} ", detail)
        self._progress.console.print(ended, soft_wrap=True)


class _Screen(Progress):
    """Bars that fit the terminal. Rich shortens names and steps; a narrow terminal shows no ids and no rates.

    With more bars than lines, running jobs come first, then the newest jobs. `idle` is shown while there are no bars.
    `dimmed`: the state is from before the connection was lost.
    """

    def __init__(self, console: Console, idle: str) -> None:
        shortened: Any = {"no_wrap": True, "overflow": "ellipsis"}
        job_id = _TextColumn(lambda task: task.fields["id"], Column(no_wrap=True, min_width=8), style="dim")
        self._name = Column(max_width=NAME_WIDTH)
        name = _TextColumn(lambda task: task.fields["name"], self._name, **shortened)
        self._bar = BarColumn(complete_style="cyan", finished_style="green", table_column=Column(no_wrap=True))
        percentage = _TextColumn(_percentage, Column(no_wrap=True, min_width=PERCENT_WIDTH))
        self._left = Column(no_wrap=True)
        left = _TextColumn(_time_left, self._left)
        rate = _TextColumn(_rate_and_time_left, self._left)
        step = _TextColumn(lambda task: task.description, style="dim", **shortened)
        self._wide: tuple[ProgressColumn, ...] = (job_id, name, self._bar, percentage, rate, step)
        self._narrow: tuple[ProgressColumn, ...] = (name, self._bar, percentage, left, step)
        self._idle = idle
        self._terminal = console
        self.dimmed = False
        super().__init__(console=console, transient=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the renderables to show."""
        for shown in self._lines():
            yield Styled(shown, "dim") if self.dimmed else shown

    def _lines(self) -> Iterable[RenderableType]:
        tasks, room = self.tasks, max(1, self._terminal.height - RESERVED_LINES)
        if len(tasks) > room:
            queued = text.status(JobStatus.QUEUED)
            newest = sorted(tasks, key=lambda task: (task.description == queued, -task.id))
            yield self.make_tasks_table(newest[:room])
            yield Text(t("… and {n} more", n=len(tasks) - room), style="dim")
        elif tasks:
            yield self.make_tasks_table(self._with_parts(tasks, room - len(tasks)))
        elif self._idle:
            yield Text(self._idle, style="dim")

    def _with_parts(self, tasks: Iterable[Task], room: int) -> Iterable[Task]:
        """Yield the bar of each job, and below it those of its tasks, unfinished tasks first, up to `room` lines."""
        for task in tasks:
            yield task
            data: ProgressData | None = task.fields["data"]
            parts = sorted(data.tasks if data else (), key=lambda part: part.state.finished)[:room]
            room -= len(parts)
            for part in parts:
                percent = text.task_percent(part)
                fields = {
                    "id": "",
                    "name": f"  {text.printable(part.name)}",
                    "known": percent is not None,
                    "data": None,
                }
                line = Task(TaskID(-1), text.task_detail(part), 100, percent or 0, self.get_time, fields=fields)
                line.start_time = 0.0  # otherwise its bar would move
                yield line

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Return the bars with the columns that fit."""
        width = self.console.width
        room = max(0, width - MIN_WIDTH)
        self._name.no_wrap = width < MIN_WIDTH  # otherwise long steps shorten it
        if width >= MIN_WIDTH:
            self.columns = self._wide
            self._bar.bar_width = min(BAR_WIDTH, width // 5)
            self._name.max_width = NAME_WIDTH + room // 2  # a command line needs more than the name of a file
            self._left.min_width = min(LEFT_WIDTH, room)  # otherwise the steps move when the first time is known
        else:
            self.columns = self._narrow if width >= STEP_WIDTH else self._narrow[:-1]
            self._bar.bar_width = max(1, width // 8)
            numbers = self._bar.bar_width + PERCENT_WIDTH + LEFT_WIDTH + 3  # with the spaces between the columns
            self._name.max_width = max(1, min(NAME_WIDTH, width - numbers))
            self._left.min_width = 0
        return super().make_tasks_table(tasks)


class _TextColumn(ProgressColumn):
    """A column with the text of each task; `options` are those of rich's Text."""

    def __init__(self, text: Callable[[Task], str], column: Column | None = None, **options: Any) -> None:
        super().__init__(column)
        self._text = text
        self._options = options

    def render(self, task: Task) -> Text:
        return Text(self._text(task), **self._options)


def display_for(url: str, names: Mapping[str, str], *, as_json: bool, all_jobs: bool = False) -> Display:
    """Return bars on a terminal, otherwise lines. `names`: known job names by id."""
    if not as_json and text.can_redraw(sys.stdout, os.environ):
        return BarDisplay(url, names)
    return ChangeDisplay(url) if all_jobs and not as_json else LineDisplay(url, as_json=as_json)


def _percentage(task: Task) -> str:
    return f"{task.percentage:>3.0f}%" if task.fields["known"] else ""


def _time_left(task: Task) -> str:
    """Return the remaining time, which counts down from the last message."""
    data: ProgressData | None = task.fields["data"]
    return text.time_left(data, task.get_time() - task.fields["moved_at"]) if data else ""


def _rate_and_time_left(task: Task) -> str:
    data: ProgressData | None = task.fields["data"]
    return "  ".join(filter(None, [text.rate(data.rate, data.unit), _time_left(task)])) if data else ""
