"""Compute the progress of a run from the numbers in its output. The percentage never falls."""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from progressd.core.event_limits import MAX_COUNT, MAX_PHASE, MAX_STEP_NAME, MAX_TASK_ID, MAX_TASKS, MAX_UNIT
from progressd.core.events import ReportedProgress, ReportedTask
from progressd.core.messages import JobStatus
from progressd.detect.reading import Reading

MAX_PHASES: Final = 64  # phases and ids that are kept
MAX_NAMED: Final = 4096  # named tasks that are kept
FINISHED: Final = 90.0  # % at which a phase may be followed by another
RESTARTED: Final = 10.0  # % below which a phase may have begun again

_COUNTER: Final = re.compile(r"(?<![\d.])(\d{1,6})\s?(?:/|of)\s?(\d{1,6})(?![\d.])")


class _Phase(Struct, eq=False):
    begin: float  # % of the whole
    share: float  # % of the whole
    total: float | None = None
    outer: "_Phase | None" = None  # the phase that this one is a step of
    reached: float = 0.0  # % of the phase


class Track:
    """Turn readings into the progress of the job.

    `shares`: the phases that are known, in order, with the share of each. Each other phase gets half of the rest, so
    that the percentage can always rise. Without known phases, the first one is the whole, unless there are `many`. Each
    of `items` has the same share.
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        many: bool = False,
        total: float | None = None,
        labels: Mapping[str, str] | None = None,
        items: int = 0,
    ) -> None:
        self._labels = labels or {}
        whole = sum(shares.values()) or 1
        self._known = dict[str, _Phase]()
        begin = 0.0
        for name, share in shares.items():
            for one in name.split("|"):
                self._known[one.casefold()] = _Phase(begin, share / whole * 100)
            begin += share / whole * 100
        self._items = items
        self._begun = 0  # items that have begun
        self._many = items > 1 or (many and items != 1)
        self._phases = dict[str, _Phase]()
        self._label = ""  # of the current phase
        self._current: _Phase | None = None
        self._restarting = False  # the next reading begins a new phase
        self._ids = dict[str, tuple[float, float]]()
        self._named = dict[str, bool]()
        self._step = ""
        self.unit = ""  # the last that was reported
        self._total = total
        self._item: tuple[float, float] | None = None
        self._percent: float | None = None  # of the whole
        self.last = Reading()  # everything known now: the rate, the unit and the time left, too

    def note(self, reading: Reading) -> None:
        """Take the values other than the progress: the step, the total, the rate and the time left."""
        last = self.last
        last.step = self._step = reading.step or self._step
        last.rate = reading.rate if reading.rate is not None else last.rate
        last.eta = reading.eta if reading.eta is not None else last.eta
        last.unit = reading.unit or last.unit
        if reading.item is not None and reading.items is not None and 1 <= reading.item <= reading.items:
            self._item = (reading.item, reading.items)
        if reading.total is not None and reading.current is None:
            self._total = max(reading.total, self._total or 0)
        self._restarting = self._restarting or reading.resets

    def move(self, reading: Reading) -> ReportedProgress:
        """Take the progress of a frame, and return that of the job."""
        self.note(reading)
        if reading.id:
            self._add(reading)
        if reading.done is not None:
            self._add_done(reading, reading.done)
        if reading.total is None:
            reading.total = self._total
        own = None if reading.grows and reading.total != self.last.total else _percent(reading)
        phase = self._phase_of(reading, own)
        if own is not None:
            phase.reached = max(phase.reached, min(own, 100.0))
            if self._item is not None and not self._known:
                item, items = self._item
                whole = (item - 1 + phase.reached / 100) / items * 100
            else:
                whole = phase.begin + phase.share * phase.reached / 100
            self._percent = max(self._percent or 0.0, min(whole, 100.0))
        last = self.last
        last.current, last.total, last.percent = reading.current, reading.total, self._percent
        last.phase = self._labels.get(reading.phase, reading.phase) or last.phase
        name = last.phase
        if self._step and self._step != name:
            name = f"{name}: {self._step}" if name else self._step
        counted = reading.current is not None
        return ReportedProgress(
            _count(reading.current),
            _count(reading.total),
            name[:MAX_STEP_NAME],
            None if self._percent is None else round(self._percent, 2),
            self._unit_of(reading),
            None if counted else reading.rate,
            last.phase[:MAX_PHASE] if reading.phase and phase in self._known.values() else None,
            self._tasks(),
        )

    def _unit_of(self, reading: Reading) -> str | None:
        """Return the unit of the counts or of the rate; "" if counts without one follow others."""
        unit = reading.unit[:MAX_UNIT]
        if reading.current is None and reading.rate is None:
            return None
        had, self.unit = self.unit, unit
        return unit if unit or had else None

    def _tasks(self) -> tuple[ReportedTask, ...]:
        """Return the ids as tasks; none if there are too many."""
        if len(self._ids) > MAX_TASKS:
            return ()
        return tuple(
            ReportedTask(
                id_[:MAX_TASK_ID],
                current=_count(current),
                total=_count(total),
                unit=self.last.unit[:MAX_UNIT] or None,
                state=JobStatus.COMPLETED if total and current >= total else JobStatus.PROCESSING,
            )
            for id_, (current, total) in self._ids.items()
        )

    def _add(self, reading: Reading) -> None:
        """Replace the progress of one id with the sum of all ids."""
        if reading.current is None or (len(self._ids) >= MAX_PHASES and reading.id not in self._ids):
            return
        before = self._ids.get(reading.id, (0.0, 0.0))
        self._ids[reading.id] = (reading.current, max(reading.total or 0.0, before[1]))
        reading.current = sum(current for current, _ in self._ids.values())
        reading.total = sum(total for _, total in self._ids.values()) or None
        reading.percent = None

    def _add_done(self, reading: Reading, done: Mapping[str, bool]) -> None:
        """Count the tasks that are done. A task never becomes undone. If all are done, another one may follow."""
        for name, is_done in done.items():
            if name in self._named or len(self._named) < MAX_NAMED:
                self._named[name] = is_done or self._named.get(name, False)
        reading.current = float(sum(self._named.values()))
        reading.total = max(len(self._named), reading.current + 1)

    def _phase_of(self, reading: Reading, own: float | None) -> _Phase:
        """Return the phase of a reading: a known one, the current one, an earlier one, or a new one."""
        label, current = reading.phase.casefold(), self._current
        phase = self._known.get(label)
        if phase is None:
            if not label and not self._known:
                label = self._label
            phase = self._phases.get(label)
            if phase is None and self._continues(reading, own):
                phase = current  # with another label, such as the name of a file
            if phase is None or self._restarting or self._fell(phase, own):
                phase = self._new_phase(phase)
            if len(self._phases) >= MAX_PHASES:
                self._phases.pop(next(iter(self._phases)))
            self._phases[label] = phase
        phase.total = reading.total
        self._label, self._current, self._restarting = label, phase, False
        return phase

    def _continues(self, reading: Reading, own: float | None) -> bool:
        """Return whether a reading with a new label continues the current phase."""
        current = self._current
        if current is None or current in self._known.values() or own is None:
            return False
        return own >= current.reached and reading.total == current.total

    def _fell(self, phase: _Phase, own: float | None) -> bool:
        if own is None:
            return False
        return (phase.reached >= FINISHED and own <= RESTARTED) or (self._many and own < phase.reached / 2)

    def _new_phase(self, before: _Phase | None) -> _Phase:
        """Return a new phase. `before`: the one that it replaces."""
        done, last = self._percent or 0.0, self._current
        if self._begun < self._items:
            self._begun += 1
            return _Phase((self._begun - 1) / self._items * 100, 100 / self._items)
        if last is None and not self._known and not self._many:
            return _Phase(0.0, 100.0)
        outer = before.outer if before else None
        if before is None and last and not self._known and not self._many and last.reached < FINISHED and last.total:
            outer = last
        if outer and outer.total:
            return _Phase(done, min(outer.share / outer.total, 100 - done), outer=outer)
        return _Phase(done, (100 - done) / 2)


def _percent(reading: Reading) -> float | None:
    """Return the percentage of a reading, from its counts if they are as exact."""
    counted = None
    if reading.current is not None and reading.total:
        counted = reading.current / reading.total * 100
    if reading.percent is None:
        return counted
    return counted if counted is not None and abs(counted - reading.percent) <= 1 else reading.percent


def counter(text: str) -> tuple[float, float] | None:
    """Return the position and the number in a label such as `Epoch 2/10`."""
    for found in _COUNTER.finditer(text):
        item, items = int(found[1]), int(found[2])
        if 1 <= item <= items and items > 1:
            return item, items
    return None


def _count(value: float | None) -> int:
    return min(int(value), MAX_COUNT) if value is not None and value >= 0 else 0
