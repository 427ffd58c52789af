"""The remaining time of a job, from the speed of the job and from earlier runs of similar jobs.

`Forecasts` has an `Estimator` for each running job. It receives the progress with its times, and returns an `Eta`. A
`Run` is the record of a finished job: its duration, its size, and the times at which it reached each twentieth. Jobs of
the same kind, pipeline, host and shape of command share their runs.

The estimate is a weighted mean, in logarithms, of two others. The first extrapolates the speed of the job, where later
progress counts more. The second is the duration of earlier runs, scaled by size. The curve of earlier runs corrects
both, because a percentage is rarely proportional to time. The weights are the inverse variances: earlier runs that
differ a lot have a small weight, and so does the speed at the beginning. `benchmarks/eta` measures the errors with
recorded runs, and `low` and `high` are computed from these errors.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Final, Literal, NamedTuple, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from progressd.core.eta_quantiles import OF_DURATION, OF_RUNS, OF_SPEED
from progressd.core.events import ReportedProgress
from progressd.core.job import Job
from progressd.core.messages import Eta, JobStatus
from progressd.core.progress import Step

Source: TypeAlias = Literal["history", "rate", "producer"]

PARTS: Final = 20  # points of a curve, besides its beginning
MAX_WORDS: Final = 40  # words of a command that are compared
MAX_WORD: Final = 80  # characters
MIN_SECONDS: Final = 1.0  # seconds; shorter jobs are not kept, because they end before anybody asks
RUNS_PER_KEY: Final = 20  # the newest ones are kept
MAX_RUNS: Final = 5000  # for all keys together, about 700 bytes each
RESIZED: Final = 0.05  # a larger change of the number of steps starts a new estimate
FORGET: Final = 0.7  # the weight of a run, compared with that of the next one
MAX_RUN_STEPS: Final = 16  # steps of a run, about 40 bytes each
MAX_USUAL: Final = 256  # jobs whose usual steps are cached
INTERVAL: Final = 0.2  # seconds between two estimates, at least; in between, the last one is valid
MAX_INTERVAL: Final = 0.5  # seconds
STALE: Final = 0.05  # the time between two estimates, as a part of the remaining time
LONGEST: Final = 1e9  # seconds, 30 years; a longer time is not estimated
SLACK: Final = 0.5  # seconds by which any estimate may be wrong, because starting and ending takes time
JUMP: Final = 5.0  # % by which the remaining time may jump while the elapsed time grows by 1 %, and 1 s each second
STEADY: Final = 1.05  # a smaller growth of the remaining time is not shown
REPORTED: Final = 1.25  # factor between the remaining time that a producer reports and the ends of its interval
SLOW: Final = 1.25  # factor between the longest usual duration and that of a job that is slower than usual
MIN_SLOW: Final = 10.0  # seconds; a shorter job is not slow
HELD: Final = 0.5  # the part of a reported remaining time during which it replaces the estimate

# Chosen for small errors of the recorded runs.
RECENT: Final = 1.0  # the weight of progress is this power of the time at which it was made
SPEED_NOISE: Final = 0.25  # of the logarithm of the speed, in the middle of a job
RUN_NOISE: Final = 0.4  # of the logarithm of the duration, if there is only one run
RUN_PRIOR: Final = 1.5  # the number of runs that RUN_NOISE is worth
MAX_SCALE: Final = 5.0  # logarithm of the largest factor by which a duration is scaled
SCALE_NOISE: Final = 0.2  # of the logarithm of the duration, for each power of e by which it is scaled
CURVE_PRIOR: Final = 1.0  # the number of runs that a straight curve is worth

_NUMBERS: Final = re.compile(r"\d+")


class RunStep(Struct, frozen=True, array_like=True):
    """A step of a run: a hash of its name without numbers, the seconds before it, and its duration."""

    name: str
    after: float
    seconds: float


class Run(Struct, frozen=True, array_like=True):
    """A completed job. `words`: hashes of its command and options. `size`: its number of steps; 0 if unknown.

    `curve`: the fraction of the time at which progress began, and each twentieth was reached; empty without progress.
    `steps`: of its timeline; steps whose names differ only in numbers are one.
    """

    words: tuple[str, ...]
    seconds: float
    size: int
    curve: tuple[float, ...]
    steps: tuple[RunStep, ...] = ()


class UsualStep(NamedTuple):
    """A step as in earlier runs: its name and phase, if the job has reached it, its start, and its duration."""

    name: str | None
    phase: str | None
    after: float  # seconds since the start of the job
    seconds: float
    runs: int


class KeyedRun(NamedTuple):
    """A completed job, for estimates of similar jobs, which have the same key."""

    key: str
    run: Run


class Expected(Struct, frozen=True):
    """The expectation from earlier runs: their number, the duration, and the variance of its logarithm.

    `curve`: the mean curve.
    """

    runs: int
    seconds: float
    variance: float
    curve: tuple[float, ...]


def words_of(name: str | None, options: Mapping[str, object]) -> tuple[str, ...]:
    """Return the hashes by which two jobs are compared: those of the words of the name, and of the options."""
    words = [*(name or "").split(), *(f"{key}={value}" for key, value in options.items())]
    return tuple(hashed(word[:MAX_WORD]) for word in words[:MAX_WORDS])


def hashed(text: str) -> str:
    """Return a hash of text. Earlier runs are kept longer than jobs, so they contain no words and no secrets."""
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def shape_of(name: str | None) -> str:
    """Return the program and the shape of its arguments: options without values, and `*` for all others."""
    shape = list[str]()
    for word in (name or "").split()[:MAX_WORDS]:
        if not shape:
            part = word.rpartition("/")[2]
        else:
            part = word.partition("=")[0].rstrip("0123456789") if word.startswith("-") else "*"
        if part != "*" or shape[-1] != "*":
            shape.append(part[:MAX_WORD])
    return " ".join(shape)


def key_of(job: Job) -> str:
    """Return a hash of the properties that similar jobs share: the key of their runs."""
    return hashed("\n".join((job.kind, job.pipeline or "", job.labels.get("host", ""), shape_of(job.name))))


@lru_cache(maxsize=4096)
def step_hash(name: str, phase: str | None) -> str:
    """Return the hash of a step, which is the same for “page 2 of 4” and “page 3 of 9”."""
    return hashed(f"{phase or ''}\n{_NUMBERS.sub('#', name)}")


def steps_of(job: Job) -> tuple[RunStep, ...]:
    """Return the steps of the last attempt of a finished job, in order of their first start."""
    found = dict[str, RunStep]()
    for step in job.steps:
        if job.started_at is None or step.ended_at is None or step.began_at < job.started_at:
            continue
        name, seconds = _hash_of(step), (step.ended_at - step.began_at).total_seconds()
        known = found.get(name)
        if known is None and len(found) >= MAX_RUN_STEPS:
            continue
        after = (step.began_at - job.started_at).total_seconds() if known is None else known.after
        found[name] = RunStep(name, round(after, 1), round(seconds + (known.seconds if known else 0.0), 1))
    return tuple(found.values())


def usual_steps(runs: Sequence[Run], words: tuple[str, ...], size: int) -> list[tuple[RunStep, int]]:
    """Return the steps of the most similar runs, with median times, in order of their start, and how many had each."""
    similar = [run for run in similar_runs(runs, words) if run.steps]
    by_name = dict[str, list[RunStep]]()
    exponent = _exponent(runs)
    for run in similar:
        factor = math.exp(_scale(exponent, size, run.size))
        for step in run.steps:
            by_name.setdefault(step.name, []).append(RunStep(step.name, step.after * factor, step.seconds * factor))
    usual = [
        (RunStep(name, _median([one.after for one in steps]), _median([one.seconds for one in steps])), len(steps))
        for name, steps in by_name.items()
        if 2 * len(steps) >= len(similar)
    ]
    return sorted(usual, key=lambda one: one[0].after)


def _hash_of(step: Step) -> str:
    return step_hash(step.name, step.phase or None)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return round((ordered[middle] + ordered[~middle]) / 2, 1)


def _scale(exponent: float, size: int, before: int) -> float:
    """Return the logarithm of the factor between the durations of a run and of a job of another size."""
    scale = exponent * math.log(size / before) if size and before else 0.0
    return min(max(scale, -MAX_SCALE), MAX_SCALE)


def similar_runs(runs: Sequence[Run], words: tuple[str, ...]) -> list[Run]:
    """Return the runs that have the most words in common with a job."""
    alike = [sum(map(str.__eq__, run.words, words)) - abs(len(run.words) - len(words)) for run in runs]
    most = max(alike, default=0)
    return [run for run, same in zip(runs, alike, strict=True) if same == most]


def expected(runs: Sequence[Run], words: tuple[str, ...], size: int) -> Expected | None:
    """Return the expectation from the most similar runs, of which the newest is the last; None without runs."""
    if not runs:
        return None
    similar = similar_runs(runs, words)
    exponent = _exponent(runs)
    logs, weight, scaled = list[tuple[float, float]](), 1.0, 0.0
    curve, curves = [CURVE_PRIOR * number / PARTS for number in range(PARTS + 1)], CURVE_PRIOR
    for run in reversed(similar):
        scale = _scale(exponent, size, run.size)
        logs.append((weight, math.log(run.seconds) + scale))
        scaled += weight * scale**2
        if run.curve:
            curve = [total + one for total, one in zip(curve, run.curve, strict=True)]
            curves += 1
        weight *= FORGET
    total = sum(weight for weight, _ in logs)
    mean = sum(weight * log for weight, log in logs) / total
    spread = sum(weight * (log - mean) ** 2 for weight, log in logs)
    variance = (spread + RUN_PRIOR * RUN_NOISE**2) / (total + RUN_PRIOR) * (1 + 1 / total)
    variance += SCALE_NOISE**2 * scaled / total
    return Expected(len(similar), math.exp(mean), variance, tuple(one / curves for one in curve))


def _exponent(runs: Sequence[Run]) -> float:
    """Return the power p, from 0 to 1, for which durations are proportional to size^p; 1 if the sizes are similar."""
    points = [(math.log(run.size), math.log(run.seconds)) for run in runs if run.size]
    if len(points) < 3:
        return 1.0
    x = sum(size for size, _ in points) / len(points)
    y = sum(seconds for _, seconds in points) / len(points)
    spread = sum((size - x) ** 2 for size, _ in points)
    if spread < 0.1:
        return 1.0
    return min(max(sum((size - x) * (seconds - y) for size, seconds in points) / spread, 0.0), 1.0)


def shape_of_duration(variance: float) -> float:
    """Return the parameter of the log-logistic distribution of the duration."""
    return min(math.pi / math.sqrt(3 * variance), 30.0)


def survival(known: Expected, elapsed: float) -> float:
    """Return the inverse of the probability that the duration is longer than this."""
    return 1 + math.pow(min(elapsed / known.seconds, 1e9), shape_of_duration(known.variance))


def slow_after(known: Expected | None) -> float:
    """Return the elapsed time after which a job is slower than usual; infinite if nothing is known.

    An interval before the start contains the duration of four jobs in five. Its end is the longest usual duration.
    """
    if known is None:
        return math.inf
    longest = known.seconds * math.pow(1 / OF_DURATION[2] - 1, 1 / shape_of_duration(known.variance))
    return max(SLOW * longest, MIN_SLOW)


class Estimator:
    """Estimate the remaining time of one job. Times are in seconds since its start, `done` is from 0 to 1.

    `log`, `spread`, `place`: the logarithm of the last estimate, its expected error, and the fraction of the time that
    had passed then. They are for `benchmarks/eta`.
    """

    # fmt: off
    __slots__ = ("_began", "_due", "_eta", "_expected", "_given_end", "_held_until", "_marks", "_shown", "_speed",
                 "done", "elapsed", "log", "place", "size", "slow_after", "spread")
    # fmt: on

    def __init__(self, known: Expected | None = None, size: int = 0) -> None:
        self.elapsed = 0.0  # at the last estimate
        self.done = 0.0
        self.log = self.spread = self.place = 0.0
        self._began = 0.0  # the elapsed time at the last report without progress
        self._due = -1.0  # the elapsed time of the next estimate
        self._eta: Eta | None = None
        self._given_end = 0.0  # the elapsed time at which the job ends, as the producer last reported
        self._held_until = 0.0  # the elapsed time until which that report replaces the estimate
        self._speed = 0.0  # fractions of the time in a second
        self._marks = list[float]()  # the elapsed time at each twentieth
        self.use(known, size)

    def use(self, known: Expected | None, size: int) -> None:
        """Use earlier runs, for a job of this size. The next estimate may differ from the last one by any amount."""
        self.size = size
        self.slow_after = slow_after(known)  # the elapsed time after which the job is slower than usual
        self._expected = known
        self._due = -1.0
        self._shown = -1.0  # the remaining time; negative if none was shown

    def run(self, words: tuple[str, ...], seconds: float) -> Run:
        """Return the completed job."""
        curve = list[float]()
        if self._marks:
            curve = [round(min(mark / seconds, 1.0), 3) for mark in (self._began, *self._marks)]
            curve += [1.0] * (PARTS + 1 - len(curve))
        return Run(words, round(seconds, 2), self.size, tuple(curve))

    def estimate(self, elapsed: float, done: float, given: float | None = None) -> Eta | None:
        """Return the remaining time; None if it is unknown.

        `given`: the remaining time that the producer reports. It counts down until a part of it has passed. 0 withdraws
        the last one.
        """
        marks = self._marks
        crosses = done * PARTS >= len(marks) + 1
        if elapsed < self._due and not crosses and given is None:
            return self._eta
        passed = elapsed - self.elapsed if elapsed > self.elapsed else 0.0
        if crosses:
            self._mark(passed, done)
        known = self._expected
        if known is None:
            place = done
            began = self._began
        else:
            place = _at(known.curve, done) if done > 0 else 0.0
            began = 0.0
        if passed > 0:
            step = place - self.place
            if step < 0:  # the steps began again
                self._speed = place / elapsed
            else:
                before = 1 - passed / (elapsed - began)  # the part of the time
                self._speed += (1 - before ** (1 + RECENT)) * (step / passed - self._speed)
        if done <= 0 and not marks:
            self._began = elapsed
        self.elapsed, self.done, self.place = elapsed, done, place
        self._due = elapsed + INTERVAL
        if given is not None:
            if given == 0 and self._eta is not None and self._eta.source == "producer":
                self._shown = -1.0  # the last value was withdrawn
            self._given_end, self._held_until = elapsed + given, elapsed + HELD * given
        if elapsed < self._held_until and done < 1:
            self._shown = left = self._given_end - elapsed
            self._eta = Eta(round(left, 1), round(left / REPORTED, 1), round(left * REPORTED, 1), "producer")
        elif known is not None:
            self._eta = self._with_runs(known, place, passed)
        elif self._speed > 0 and place > 0:
            self._eta = self._result(min((1 - place) / self._speed, LONGEST), place, passed, "rate", 0)
        else:
            self._eta = None
            return None
        wait = STALE * self._shown
        self._due = elapsed + (INTERVAL if wait < INTERVAL else min(MAX_INTERVAL, wait))
        return self._eta

    def _mark(self, passed: float, done: float) -> None:
        """Record the times at which twentieths were reached since the last estimate."""
        moved = done - self.done
        for number in range(len(self._marks) + 1, min(int(done * PARTS), PARTS) + 1):
            part = (number / PARTS - self.done) / moved if moved > 0 else 1.0
            self._marks.append(self.elapsed + passed * min(max(part, 0.0), 1.0))

    def _with_runs(self, known: Expected, place: float, passed: float) -> Eta:
        """Return the estimate from earlier runs and the speed. The duration is longer than the elapsed time."""
        variance, left = known.variance, 1 - place
        shape, survived = shape_of_duration(variance), survival(known, self.elapsed)
        seconds = known.seconds * (2 * survived - 1) ** (1 / shape)
        if place <= 0:
            low, seconds, high = (known.seconds * (survived / part - 1) ** (1 / shape) for part in OF_DURATION)
            spent = self.elapsed
            return self._limited(seconds - spent, low - spent, high - spent, passed, "history", known.runs)
        log, part = math.log(seconds * left + SLACK), 0.0
        if self._speed > 0:
            part = variance / (variance + SPEED_NOISE**2 * (left + 0.05) / place)
            log += part * (math.log(min(left / self._speed, LONGEST) + SLACK) - log)
        self.log, self.spread = log, math.sqrt(variance * (1 - part))
        return self._within(OF_RUNS, passed, "history" if part < 0.5 else "rate", known.runs)

    def _result(self, seconds: float, place: float, passed: float, source: Source, runs: int) -> Eta:
        self.log = math.log(seconds + SLACK)
        self.spread = SPEED_NOISE * math.sqrt((1.05 - place) / (place + 0.01))
        return self._within(OF_SPEED, passed, source, runs)

    def _within(self, quantiles: Sequence[tuple[float, float, float]], passed: float, source: Source, runs: int) -> Eta:
        """Return the estimate with the interval that fits the errors of recorded runs."""
        number = self.place * (len(quantiles) - 1)
        below = int(number) if self.place < 1 else len(quantiles) - 2
        part = number - below
        low, middle, high = quantiles[below]
        low_above, middle_above, high_above = quantiles[below + 1]
        log, spread, exp = self.log, self.spread, math.exp
        return self._limited(
            exp(log + spread * (middle + part * (middle_above - middle))) - SLACK,
            exp(log + spread * (low + part * (low_above - low))) - SLACK,
            exp(log + spread * (high + part * (high_above - high))) - SLACK,
            passed,
            source,
            runs,
        )

    def _limited(self, seconds: float, low: float, high: float, passed: float, source: Source, runs: int) -> Eta:
        """Return the estimate without jumps. The time that was last shown has become shorter by the time that has
        passed since."""
        if self.place >= 1:
            seconds = 0.0
        elif self._shown >= 0:
            before = self._shown - passed if self._shown > passed else 0.0
            room = JUMP * passed / self.elapsed if passed else 0.0
            room = passed + before * (room if room < 1 else 1.0)
            if seconds > before:
                seconds = before if seconds < before * STEADY else min(before + room, seconds)
            elif seconds < before - room:
                seconds = before - room
        if seconds < 0:
            seconds = 0.0
        self._shown = seconds
        low = seconds if low > seconds else low if low > 0 else 0.0
        high = max(seconds, high)
        # three calls of `round` would take 1 µs
        return Eta(int(10 * seconds + 0.5) / 10, int(10 * low + 0.5) / 10, int(10 * high + 0.5) / 10, source, runs)


def _at(curve: Sequence[float], done: float) -> float:
    """Return the fraction of the time at which the job has done this much."""
    number = done * PARTS
    below = int(number)
    if below >= PARTS:
        return curve[PARTS]
    return curve[below] + (number - below) * (curve[below + 1] - curve[below])


class Forecasts:
    """Estimate the remaining time of each running job. Only ingest changes it, in its own task."""

    def __init__(self) -> None:
        self._runs = dict[str, list[Run]]()  # the newest is the last, in each list and of the lists
        self._count = 0
        self._added = 0  # runs since the start
        self._running = dict[str, Estimator]()
        self._usual = dict[str, tuple[tuple[int, int], list[tuple[RunStep, int]]]]()

    def eta(self, job: Job, given: ReportedProgress, now: datetime) -> Eta | None:
        """Return the remaining time of a job with this progress; None if it is unknown."""
        assert job.started_at is not None
        elapsed = (now - job.started_at).total_seconds()
        estimator = self._running.get(job.id)
        current, size = given.current_step or 0, given.total_steps or 0
        if estimator is None or elapsed < estimator.elapsed:  # such as after it was queued again
            estimator = self._running[job.id] = Estimator(self._expected(job, size), size)
        elif size != estimator.size and abs(size - estimator.size) > RESIZED * estimator.size:
            estimator.use(self._expected(job, size), size)
        done = current / size if size else 0.0
        if given.percent is not None:
            done = given.percent / 100
        # two calls of `min` and `max` would take as long as the rest
        return estimator.estimate(elapsed if elapsed > 0 else 0.0, done if done < 1 else 1.0, given.eta_seconds)

    def duration(self, job: Job) -> float | None:
        """Return the expected duration of a job, in seconds; None if it is unknown."""
        known = self._expected(job, job.progress.total_steps)
        return None if known is None else known.seconds

    def estimates(self, job: Job) -> bool:
        """Return whether there is an estimate for a running job, or no run for one."""
        return job.id in self._running or not self._runs

    def is_slow(self, job: Job, now: datetime) -> bool:
        """Return whether a job has been running for longer than usual. The first time, this may take 0.2 ms."""
        if job.status is not JobStatus.PROCESSING or job.started_at is None:
            return False
        estimator = self._running.get(job.id)
        if estimator is None:
            if not self._runs:
                return False
            size = job.progress.total_steps
            estimator = self._running[job.id] = Estimator(self._expected(job, size), size)
        return (now - job.started_at).total_seconds() > estimator.slow_after

    def run_of(self, job: Job) -> KeyedRun | None:
        """Return the record of a finished job; None if the job failed or was too short."""
        if job.status is not JobStatus.COMPLETED or job.started_at is None or job.completed_at is None:
            return None
        seconds = (job.completed_at - job.started_at).total_seconds()
        if seconds < MIN_SECONDS:
            return None
        estimator = self._running.get(job.id) or Estimator(size=job.progress.total_steps)
        run = estimator.run(words_of(job.name, job.options), seconds)
        return KeyedRun(key_of(job), replace(run, steps=steps_of(job)) if job.steps else run)

    def usual_steps(self, job: Job) -> list[UsualStep]:
        """Return the steps of earlier runs, with the names of those that the job has reached."""
        if not self._runs:
            return []
        size = job.progress.total_steps
        known = self._usual.get(job.id)
        if known is None or known[0] != (self._added, size):
            own = steps_of(job) if job.status.finished else None
            runs = [run for run in self._runs.get(key_of(job), ()) if run.steps != own]
            found = usual_steps(runs, words_of(job.name, job.options), size) if runs else []
            self._usual.pop(job.id, None)
            known = self._usual[job.id] = (self._added, size), found
            if len(self._usual) > MAX_USUAL:
                del self._usual[next(iter(self._usual))]
        names = {_hash_of(step): step for step in job.steps} if known[1] else {}
        usual = list[UsualStep]()
        for step, runs_ in known[1]:
            reached = names.get(step.name)
            name, phase = (None, None) if reached is None else (reached.name, reached.phase or None)
            usual.append(UsualStep(name, phase, step.after, step.seconds, runs_))
        return usual

    def finish(self, jobs: Iterable[Job], runs: Iterable[KeyedRun]) -> None:
        """Forget the estimates of finished jobs, and keep the runs, which are durable."""
        for job in jobs:
            self._running.pop(job.id, None)
        self.add(runs)

    def add(self, runs: Iterable[KeyedRun]) -> None:
        """Keep earlier runs, of which the newest is the last."""
        for key, run in runs:
            known = self._runs.pop(key, [])
            known.append(run)
            self._runs[key] = known
            self._count += 1
            self._added += 1
            if len(known) > RUNS_PER_KEY:
                del known[0]
                self._count -= 1
            if self._count > MAX_RUNS:
                self._count -= len(self._runs.pop(next(iter(self._runs))))

    def _expected(self, job: Job, size: int) -> Expected | None:
        runs = self._runs.get(key_of(job)) if self._runs else None
        return expected(runs, words_of(job.name, job.options), size) if runs else None
