"""The details of a job's progress: its unit, rate, phase, tasks and timeline. Pure functions, without a clock."""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from progressd.core.errors import Conflict, InvalidInput
from progressd.core.event_limits import MAX_TASKS
from progressd.core.events import ReportedProgress, ReportedTask
from progressd.core.messages import JobStatus, ProgressData, TaskData

FADE: Final = 15.0  # seconds after which a measurement counts for a tenth
MIN_INTERVAL: Final = 0.1  # seconds between two measurements, and of a step in the timeline
MAX_STEPS: Final = 200  # of a timeline
MERGED: Final = 50  # steps of a full timeline that are merged at a time


class Meter(Struct, frozen=True, array_like=True):
    """A rate, smoothed twice with exponential weights by time. Bursts, pauses and irregular reports do not upset it.

    Times are in seconds. `source`: names the thing that is counted. When it changes, the measurement starts again.
    """

    source: str
    began: float
    at: float
    count: int
    smooth: float = 0.0  # units a second
    smoother: float = 0.0  # units a second

    def measured(self, count: int, now: float) -> "Meter":
        """Return the meter after a new count, which is at least the last."""
        weight = _weight(now - self.at)
        speed = (count - self.count) / (now - self.at)
        smooth = self.smooth * weight + speed * (1 - weight)
        normalized = smooth / (1 - _weight(now - self.began))
        smoother = self.smoother * weight + normalized * (1 - weight)
        return Meter(self.source, self.began, now, count, smooth, smoother)

    @property
    def rate(self) -> float | None:
        """Return the units a second, with four digits; None if nothing has moved yet."""
        if not self.smoother:
            return None
        return float(f"{self.smoother / (1 - _weight(self.at - self.began)):.4g}")


def _weight(seconds: float) -> float:
    return float(0.1 ** (seconds / FADE))


class Dropped(Struct, frozen=True, array_like=True):
    """The finished tasks that new ones have replaced. They still count for the percentage."""

    tasks: int = 0
    current: int = 0
    total: int = 0


class Detail(Struct, frozen=True, omit_defaults=True):
    """The stored details of a job's progress. `percent_given`: the producer itself sent the percentage."""

    meter: Meter | None = None
    dropped: Dropped = Dropped()
    percent_given: bool = False


class Step(Struct, frozen=True, omit_defaults=True):
    """A step in the timeline of a job. The counts at its start and its end are in `unit`s.

    `merged`: the steps that were merged into this one; it has the name of the longest.
    """

    name: str
    began_at: datetime
    ended_at: datetime | None = None
    phase: str | UnsetType = UNSET
    unit: str | UnsetType = UNSET
    first: int = 0
    last: int = 0
    merged: int = 1

    @property
    def rate(self) -> float | None:
        """Return the units a second of a step that has ended; None if unknown."""
        if self.unit is UNSET or self.ended_at is None or self.last <= self.first:
            return None
        seconds = (self.ended_at - self.began_at).total_seconds()
        return float(f"{(self.last - self.first) / seconds:.4g}") if seconds > 0 else None


def detailed(
    before: ProgressData, detail: Detail, given: ReportedProgress, now: datetime
) -> tuple[ProgressData, Detail]:
    """Return the progress after a report with details, and the details to store.

    Omitted values stay as they were. Raises Conflict for too many tasks.
    """
    current = before.current_step if given.current_step is None else given.current_step
    total = before.total_steps if given.total_steps is None else given.total_steps
    counted = given.current_step is not None or given.total_steps is not None
    phase = before.phase if given.phase is None else given.phase or UNSET
    tasks, dropped = (
        merged_tasks(before.tasks, given.tasks, detail.dropped) if given.tasks else (before.tasks, detail.dropped)
    )
    percent, percent_given = before.percent, detail.percent_given
    if counted or given.percent is not None:
        percent_given = given.percent is not None
    if given.percent is not None or (counted and total):
        percent = percentage(current, total, given.percent)
    elif tasks and not total and not percent_given:
        percent = tasks_percentage(tasks, dropped)
    elif counted:
        percent = 0
    unit = before.unit if given.unit is None else given.unit or UNSET
    source = f"{unit or ''} {phase or ''}"
    if tasks and not (current or total):
        unit = common_unit(tasks) or unit
        source = f"tasks {unit or ''} {phase or ''}"
    count = _done(current, total, tasks, dropped)
    meter, rate = detail.meter, before.rate
    seconds = now.timestamp()
    if given.rate is not None:
        meter, rate = None, given.rate
    elif unit is UNSET:
        meter, rate = None, UNSET
    elif meter is None or meter.source != source or count < meter.count or seconds < meter.at:
        meter, rate = Meter(source, seconds, seconds, count), UNSET
    elif seconds - meter.at >= MIN_INTERVAL:
        meter = meter.measured(count, seconds)
        rate = UNSET if meter.rate is None else meter.rate
    data = ProgressData(
        current,
        total,
        given.step_name or ("" if counted else before.step_name),
        percent,
        unit=unit,
        rate=rate,
        phase=phase,
        tasks=tasks,
    )
    return data, Detail(meter, dropped, percent_given)


def done_of(data: ProgressData, detail: Detail | None) -> int:
    """Return the amount that is done: the steps, or else the sum of the tasks."""
    return (
        data.current_step if detail is None else _done(data.current_step, data.total_steps, data.tasks, detail.dropped)
    )


def _done(current: int, total: int, tasks: tuple[TaskData, ...], dropped: Dropped) -> int:
    if current or total or not tasks:
        return current
    return sum([task.current for task in tasks]) + dropped.current


def missing_counts(given: ReportedProgress) -> InvalidInput:
    """Return the error for a report that has neither counts nor details."""
    name = "current_step" if given.current_step is None else "total_steps"
    return InvalidInput(f"not an event: Object missing required field `{name}` - at `$.data`")


def percentage(current_step: int, total_steps: int, given: float | None = None) -> int:
    """Return the percentage, 0 to 100: the `given` one, or else floor(100 · current / total)."""
    if given is not None:
        return int(max(0.0, min(100.0, given)))  # in this order: a pattern can find "inf"
    if total_steps <= 0:
        return 0
    return min(100, 100 * current_step // total_steps)


def merged_tasks(
    before: tuple[TaskData, ...], given: Iterable[ReportedTask], dropped: Dropped
) -> tuple[tuple[TaskData, ...], Dropped]:
    """Return the tasks after new values of some, in the order in which they were first reported.

    A new task replaces the oldest finished one if necessary. Raises Conflict if none has finished.
    """
    tasks = {task.id: task for task in before}
    for one in given:
        known = tasks.get(one.id)
        if known is None and len(tasks) >= MAX_TASKS:
            gone = next((task for task in tasks.values() if task.state.finished), None)
            if gone is None:
                raise Conflict(f"task {one.id[:60]!r} is one too many: a job has at most {MAX_TASKS} unfinished tasks")
            del tasks[gone.id]
            size = max(gone.current, gone.total)
            dropped = Dropped(dropped.tasks + 1, dropped.current + gone.current, dropped.total + size)
        tasks[one.id] = _task(known or TaskData(one.id, one.id, 0, 0, JobStatus.PROCESSING), one)
    return tuple(tasks.values()), dropped


def _task(before: TaskData, given: ReportedTask) -> TaskData:
    return TaskData(
        before.id,
        given.name or before.name,
        before.current if given.current is None else given.current,
        before.total if given.total is None else given.total,
        before.state if given.state is None else given.state,
        given.unit or before.unit,
    )


def common_unit(tasks: Iterable[TaskData]) -> str | None:
    """Return the unit that all tasks have; None if they differ, or if none is known."""
    units = {task.unit for task in tasks}
    [unit] = units if len(units) == 1 else [UNSET]
    return None if unit is UNSET else unit


def tasks_percentage(tasks: tuple[TaskData, ...], dropped: Dropped) -> int:
    """Return the percentage of all tasks. A finished task is done.

    A task weighs as much as its total, if all totals are known and in the same unit. Otherwise all weigh the same.
    """
    same_unit = len({task.unit for task in tasks}) == 1
    if same_unit and all(task.total for task in tasks) and bool(dropped.tasks) == bool(dropped.total):
        done = dropped.total + sum(
            task.total if task.state.finished else min(task.current, task.total) for task in tasks
        )
        return 100 * done // (dropped.total + sum(task.total for task in tasks))
    done_shares = dropped.tasks + sum(_share(task) for task in tasks)
    return int(100 * done_shares / (dropped.tasks + len(tasks)) + 1e-9)


def _share(task: TaskData) -> float:
    if task.state.finished:
        return 1.0
    return min(1.0, task.current / task.total) if task.total else 0.0


def next_step(
    steps: tuple[Step, ...], before: ProgressData, data: ProgressData, detail: Detail | None, now: datetime
) -> tuple[Step, ...]:
    """Return the timeline after new progress: the same object, unless the step or the phase has changed.

    A step that lasts less than MIN_INTERVAL is a part of the step after it.
    """
    last = steps[-1] if steps else None
    if last is not None and last.ended_at is None:
        if last.name == data.step_name and last.phase == data.phase:
            return steps
        if 0 <= (now - last.began_at).total_seconds() < MIN_INTERVAL:
            return steps
        if before.step_name == data.step_name and before.phase == data.phase:
            return (*steps[:-1], renamed_step(last, before))
        steps = ended_steps(steps, before, max(done_of(before, detail), done_of(data, detail)), now)
    if not data.step_name and data.phase is UNSET:
        return steps
    if len(steps) >= MAX_STEPS:
        steps = merged_steps(steps)
    return (*steps, Step(data.step_name, now, None, data.phase, data.unit, done_of(data, detail)))


def renamed_step(step: Step, data: ProgressData) -> Step:
    """Return the current step with the name that it has now, if the step with the earlier name was too short."""
    if step.ended_at is not None or (step.name == data.step_name and step.phase == data.phase):
        return step
    return replace(step, name=data.step_name, phase=data.phase)


def ended_steps(steps: tuple[Step, ...], before: ProgressData, done: int, now: datetime) -> tuple[Step, ...]:
    """Return the timeline after its last step has ended. `before`: the last progress in it."""
    if not steps or steps[-1].ended_at is not None:
        return steps
    last = renamed_step(steps[-1], before)
    return (*steps[:-1], replace(last, ended_at=max(now, last.began_at), last=done, unit=last.unit or before.unit))


def merged_steps(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Merge neighbours, the shortest first, and those of one phase before others. All steps have ended."""

    def cost(place: int) -> tuple[bool, float]:
        first, second = steps[place], steps[place + 1]
        return first.phase != second.phase, _seconds(first) + _seconds(second)

    joined = set[int]()  # the first of each pair
    for place in sorted(range(len(steps) - 1), key=cost):
        if place - 1 not in joined and place + 1 not in joined:
            joined.add(place)
            if len(joined) == MERGED:
                break
    merged, place = list[Step](), 0
    while place < len(steps):
        if place in joined:
            merged.append(_merged(steps[place], steps[place + 1]))
            place += 1
        else:
            merged.append(steps[place])
        place += 1
    return tuple(merged)


def _merged(first: Step, second: Step) -> Step:
    longest = first if _seconds(first) >= _seconds(second) else second
    same = first.unit == second.unit and first.last == second.first  # otherwise the counts began again
    return replace(
        longest,
        began_at=first.began_at,
        ended_at=second.ended_at,
        unit=first.unit if same else UNSET,
        first=first.first,
        last=second.last,
        merged=first.merged + second.merged,
    )


def _seconds(step: Step) -> float:
    return 0.0 if step.ended_at is None else (step.ended_at - step.began_at).total_seconds()
