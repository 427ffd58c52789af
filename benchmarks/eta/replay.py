"""Replay recorded runs through the estimators of the daemon, of tqdm and of ninja, and a straight line."""

import gzip
import heapq
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec import Struct, convert
from msgspec.structs import replace
from progressd.core import eta
from progressd.core.eta import Forecasts
from progressd.core.events import ReportedProgress
from progressd.core.job import Job
from progressd.core.messages import Eta, JobStatus

GLANCES: Final = 20  # evenly spaced times of each run at which somebody looks
OTHERS: Final = ("tqdm", "ninja", "linear")
EMA: Final = 0.3  # of tqdm, as its default

Progress = tuple[float, int, int, int]  # seconds since the start, current step, total steps, percent
Table = Sequence[tuple[float, float, float]]


class Recorded(Struct, frozen=True):
    """A recorded run, without the identity of its machine. `began` is in seconds of the clock."""

    kind: str
    options: dict[str, Any]
    began: float
    seconds: float
    progress: list[Progress]
    name: str | None = None
    pipeline: str | None = None

    @property
    def tool(self) -> str:
        """Return the name of the tool."""
        words = (self.name or self.kind).split()
        modules = [words[number + 1] for number, word in enumerate(words[:-1]) if word == "-m"]
        return "tqdm" if "hash_files.py" in words else (modules or words)[0]


class Estimate(NamedTuple):
    """What was shown from this time on, and what the calibration needs: see `Estimator`. `known`: with history."""

    time: float
    eta: Eta
    known: eta.Expected | None
    log: float
    spread: float
    place: float


class Glance(NamedTuple):
    """A look at a running job: the true remaining time then, and what was shown. `since`: how old that is."""

    run: int
    true: float
    since: float
    shown: Estimate
    others: Mapping[str, float] | None  # the remaining time of each; None if not all have one


class Replay(NamedTuple):
    """The estimates of all runs. `moves`: by estimator, how often its end moved by more than a tenth and a second."""

    glances: list[Glance]
    looks: int
    moves: Mapping[str, int]


def load(path: Path) -> list[Recorded]:
    """Return the recorded runs in the order of their beginning."""
    with gzip.open(path, "rt") as file:
        return convert([json.loads(line) for line in file], list[Recorded])


def use(of_duration: Sequence[float], of_speed: Table, of_runs: Table) -> None:
    """Use these quantiles."""
    eta.OF_DURATION, eta.OF_SPEED, eta.OF_RUNS = tuple(of_duration), tuple(of_speed), tuple(of_runs)  # type: ignore[misc]


def replay(runs: Sequence[Recorded], *, history: bool) -> Replay:
    """Replay the runs at their times, as one daemon would have seen them, or each one without `history`."""
    glances, looks, moves = list[Glance](), 0, dict.fromkeys(("progressd", *OTHERS), 0)
    forecasts, ends = Forecasts(), list[tuple[float, int, Job]]()
    before = dict[str, list[Progress]]()  # the last run of each tool, for ninja
    for number, run in enumerate(runs):
        while history and ends and ends[0][0] <= run.began:
            _, other, job = heapq.heappop(ends)
            kept = forecasts.run_of(job)
            forecasts.finish([job], [kept] if kept else [])
            before[runs[other].tool] = [*runs[other].progress, (runs[other].seconds, 0, 0, 100)]
        if not history:
            forecasts = Forecasts()
        job = _job(run, number)
        shown = list(_estimates(forecasts, job, run))
        heapq.heappush(ends, (run.began + run.seconds, number, _ended(job, run)))
        others = {name: list(_other(name, run, before.get(run.tool))) for name in OTHERS}
        moves["progressd"] += _moves([(one.time, one.eta.seconds) for one in shown])
        for name, values in others.items():
            moves[name] += _moves(values)
        for glance in range(GLANCES):
            time = run.seconds * (glance + 0.5) / GLANCES
            looks += 1
            last = _last(shown, time, lambda one: one.time)
            if last is None:
                continue
            values = {name: _last(all_, time, lambda one: one[0]) for name, all_ in others.items()}
            left = {name: max(one[1] - (time - one[0]), 0) for name, one in values.items() if one is not None}
            glances.append(
                Glance(number, run.seconds - time, time - last.time, last, left if len(left) == len(OTHERS) else None)
            )
    return Replay(glances, looks, moves)


def _job(run: Recorded, number: int) -> Job:
    return Job(
        id=str(number),
        kind=run.kind,
        name=run.name,
        pipeline=run.pipeline,
        options=run.options,
        status=JobStatus.PROCESSING,
        created_at=_time(run.began),
        started_at=_time(run.began),
    )


def _ended(job: Job, run: Recorded) -> Job:
    return replace(job, status=JobStatus.COMPLETED, completed_at=_time(run.began + run.seconds))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)


def _estimates(forecasts: Forecasts, job: Job, run: Recorded) -> Iterator[Estimate]:
    for time, current, total, percent in [(0.0, 0, 0, 0), *run.progress]:
        exact = total > 0 and percent == min(100 * current // total, 100)
        given = ReportedProgress(current, total, "", None if exact else percent)
        if time >= run.seconds:
            return
        shown = forecasts.eta(job, given, _time(run.began + time))
        estimator = forecasts._running[job.id]
        if shown is not None:
            yield Estimate(time, shown, estimator._expected, estimator.log, estimator.spread, estimator.place)


def _other(name: str, run: Recorded, earlier: list[Progress] | None) -> Iterator[tuple[float, float]]:
    """Yield the times and the remaining times of another estimator."""
    mean_done = mean_time = calls = last = last_time = 0.0
    for time, current, total, percent in run.progress:
        done = current / total if total and percent == min(100 * current // total, 100) else percent / 100
        if done <= last or time <= last_time or time >= run.seconds:
            continue
        calls += 1
        mean_done = EMA * (done - last) + (1 - EMA) * mean_done
        mean_time = EMA * (time - last_time) + (1 - EMA) * mean_time
        last, last_time = done, time
        line = time * (1 - done) / done
        if name == "tqdm":  # its bias correction is the same for both means
            yield time, (1 - done) * mean_time / mean_done
        elif name == "ninja" and earlier is not None:
            yield time, _of_ninja(time, done, line, earlier)
        else:
            yield time, line


def _of_ninja(time: float, done: float, line: float, earlier: list[Progress]) -> float:
    """Return the estimate of ninja 1.12: what was left of the last run here, unless the speeds differ tenfold."""
    end = earlier[-1][0]
    reached = next((at for at, current, total, percent in earlier if _done(current, total, percent) >= done), end)
    usual = reached / done
    actual = time / done
    if time >= 15 and done >= 0.05 and max(usual, actual) >= 10 * max(min(usual, actual), 1e-9):
        return line
    return end - reached


def _done(current: int, total: int, percent: int) -> float:
    return current / total if total and percent == min(100 * current // total, 100) else percent / 100


def _moves(shown: Sequence[tuple[float, float]]) -> int:
    """Return how often the forecast end moved by more than a tenth of the remaining time and a second."""
    return sum(
        abs(after - max(before - (later - earlier), 0)) > 1 + 0.1 * before
        for (earlier, before), (later, after) in pairwise(shown)
    )


def _last(values: Sequence[Any], time: float, key: Callable[[Any], float]) -> Any:
    found = None
    for one in values:
        if key(one) > time:
            break
        found = one
    return found


def score(glance: Glance) -> float:
    """Return the error in units of the expected one, when the estimate was made; without progress, a probability."""
    true, known = glance.true + glance.since, glance.shown.known
    if known is not None and glance.shown.place <= 0:
        return eta.survival(known, glance.shown.time) / eta.survival(known, glance.shown.time + true)
    return (math.log(true + eta.SLACK) - glance.shown.log) / glance.shown.spread


def covered(glance: Glance) -> bool:
    """Return whether the interval contains the true remaining time."""
    return glance.shown.eta.low - 0.05 <= glance.true + glance.since <= glance.shown.eta.high + 0.05


def error(glance: Glance, name: str = "progressd") -> float:
    """Return the error of an estimator, as a fraction of the true remaining time."""
    shown = max(glance.shown.eta.seconds - glance.since, 0.0)
    if name != "progressd":
        assert glance.others is not None
        shown = glance.others[name]
    return abs(shown - glance.true) / glance.true
