"""The targets, each a figure or a ratio within a run."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Final, NamedTuple

from benchmarks.load import Sample
from benchmarks.scenarios import PAGES, READS, UNCHANGED, WATCHED

ALONE, IDLE, FINISHED = "alone", "10,000 idle watchers of other jobs", "1,000,000 finished jobs in the store"


class Target(NamedTuple):
    """A figure of progressd or, with `over`, its ratio to that server (or variant) in the same run."""

    scenario: str
    what: str
    figure: str
    least: float | None = None
    most: float | None = None
    over: str = ""
    variant: str = ""
    over_variant: str | None = None
    unit: str = ""


class Reached(NamedTuple):
    """A target and the figures of the runs."""

    target: Target
    values: Sequence[float]

    @property
    def value(self) -> float:
        """The median of the runs."""
        return median(self.values)

    @property
    def met(self) -> bool:
        """Whether the median meets the target."""
        least, most = self.target.least, self.target.most
        return (least is None or self.value >= least) and (most is None or self.value <= most)


TARGETS: Final = (
    Target("fan-out-100", "CPU per delivery ÷ Nchan's", "cpu_us", most=1.0, over="nchan"),
    Target("fan-out-100", "CPU per delivery ÷ `websockets`'", "cpu_us", most=0.5, over="websockets"),
    Target("fan-out-100", "CPU per delivery ÷ trio-websocket's", "cpu_us", most=0.1, over="trio-websocket"),
    Target("fan-out-100", "p99 ÷ Nchan's", "p99_ms", most=1.0, over="nchan"),
    Target("fan-out-100", "CPU per delivery ÷ bare `send()`", "cpu_us", most=1.6, over="floor"),
    Target("fan-out-300", "CPU per delivery ÷ Nchan's", "cpu_us", most=0.5, over="nchan"),
    Target("fan-out-300", "CPU per delivery ÷ bare `send()`", "cpu_us", most=1.6, over="floor"),
    Target("fan-out-300", "deliveries per second", "deliveries_s", least=100_000),
    Target("many-jobs", "CPU per delivery ÷ Nchan's", "cpu_us", most=1.2, over="nchan"),
    Target("all-jobs", "CPU per delivery ÷ Nchan's", "cpu_us", most=0.25, over="nchan"),
    Target("idle", "memory per connection", "connection_kib", most=20, unit="KiB"),
    Target("handshakes", "CPU per handshake", "handshake_ms", most=0.4, unit="ms"),
    Target("crowd", "first message to 1,000 watchers", "served_ms", most=1000, unit="ms"),
    Target("crowd", "p99 of other watchers", "crowd_p99_ms", most=50, unit="ms"),
    Target("returning", "p99 of other watchers", "crowd_p99_ms", most=50, unit="ms"),
    Target("returning", "p99 of reads", "crowd_read_p99_ms", most=50, unit="ms"),
    Target("pages", "core of 100 pages", "server_busy", most=30, variant=PAGES, unit="%"),
    Target(
        "event-cost",
        "CPU per event with 10,000 idle watchers ÷ alone",
        "event_us",
        most=1.1,
        variant=IDLE,
        over_variant=ALONE,
    ),
    Target(
        "event-cost",
        "CPU per event with 1,000,000 finished jobs ÷ alone",
        "event_us",
        most=1.1,
        variant=FINISHED,
        over_variant=ALONE,
    ),
    Target("one-producer", "events per second", "events_s", least=50_000),
    Target("one-producer", "memory growth in the steady phase", "growth_mib", most=1, unit="MiB"),
    Target("polling", "CPU of a read, for 3,000 per second on one core", "read_us", most=333, variant=READS, unit="µs"),
    Target(
        "polling", "CPU of a 304, for 5,000 per second on one core", "read_us", most=200, variant=UNCHANGED, unit="µs"
    ),
    Target(
        "polling",
        "p99 of 500 watchers beside 3,000 reads/s ÷ alone",
        "p99_ms",
        most=2,
        variant="both: 3,000 reads/s",
        over_variant=WATCHED,
    ),
    Target(
        "slow-watchers",
        "p99 of other watchers with ÷ without",
        "p99_ms",
        most=1.5,
        variant="with",
        over_variant="without",
    ),
    Target(
        "slow-watchers",
        "slow watchers receive everything, or close code 4000 (1: yes)",
        "slow_complete",
        least=1,
        variant="with",
    ),
)


def reached(samples: Iterable[Sample]) -> list[Reached]:
    """Return the targets of the scenarios that were run, with their figures."""
    figures = {(s.scenario, s.variant, s.server, s.run): s.figures for s in samples}
    runs = sorted({key[3] for key in figures})
    found = []
    for target in TARGETS:
        values = [value for run in runs if (value := _value(target, run, figures.get)) is not None]
        if values:
            found.append(Reached(target, values))
    return found


def _value(target: Target, run: int, figures: Callable[..., object]) -> float | None:
    def of(variant: str, server: str) -> float | None:
        found = figures((target.scenario, variant, server, run)) or {}
        assert isinstance(found, dict)
        return found.get(target.figure)

    own = of(target.variant, "progressd")
    if own is None or (not target.over and target.over_variant is None):
        return own
    other = of(target.variant if target.over_variant is None else target.over_variant, target.over or "progressd")
    return own / other if other else None
