"""The scenarios: the load, the servers and the figures of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

ALL: Final = ("progressd", "nchan", "websockets", "starlette", "ws", "trio-websocket")
READS, UNCHANGED = "reads at the maximum rate", "304s at the maximum rate"
PAGES: Final = "with an interval of 1 s"
WATCHED: Final = "watchers only"
PUSH: Final = ("cpu_us", "deliveries_s", "p50_ms", "p99_ms", "max_ms", "server_busy", "client_busy")


@dataclass(frozen=True)
class Variant:
    """A variation of the scenario's load."""

    name: str = ""
    load: Mapping[str, int] = field(default_factory=dict)
    finished_jobs: int = 0  # in the daemon's store
    query: str = ""  # of the watchers


@dataclass(frozen=True)
class Scenario:
    """`load` holds options of the load client (load/options.h). `ratio`: the figure that servers are compared by."""

    name: str
    title: str
    load: Mapping[str, int]
    figures: tuple[str, ...] = PUSH
    ratio: str = "cpu_us"
    servers: tuple[str, ...] = ALL
    variants: tuple[Variant, ...] = (Variant(),)
    all_jobs: bool = False  # every watcher watches all jobs, not one
    crowd_watches_all: bool = False
    restarted: bool = False  # the daemon is killed and started again before the load
    settings: Mapping[str, str] = field(default_factory=dict)  # of the daemon, as environment variables


SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "fan-out-100",
            "One job, 500 watchers, 100 events/s",
            {"watchers": 500, "rate": 100},
            servers=(*ALL, "floor"),
        ),
        Scenario(
            "fan-out-300",
            "One job, 500 watchers, 300 events/s",
            {"watchers": 500, "rate": 300},
            servers=(*ALL, "floor"),
        ),
        Scenario(
            "many-jobs",
            "100 jobs with 10 watchers each, 5,000 events/s in total",
            {"jobs": 100, "watchers": 1000, "rate": 5000},
        ),
        Scenario(
            "all-jobs",
            "`/ws/jobs`, 20 watchers, 100 jobs, 5,000 events/s in total",
            {"jobs": 100, "watchers": 20, "rate": 5000},
            all_jobs=True,
        ),
        Scenario(
            "all-jobs-bursts",
            "The same 5,000 events/s, in a burst of 50 every 10 ms",
            {"jobs": 100, "watchers": 20, "rate": 5000, "burst": 50},
            all_jobs=True,
        ),
        Scenario(
            "as-fast-as-it-goes",
            "One job, 500 watchers, maximum event rate",
            {"watchers": 500, "rate": 0},
            figures=("deliveries_s", "cpu_us", "server_busy", "client_busy"),
            ratio="deliveries_s",
            servers=("progressd", "nchan", "floor"),
        ),
        Scenario(
            "idle",
            "10,000 idle connections",
            {"watchers": 10, "rate": 10, "idle": 10_000, "idle_jobs": 100},
            figures=("connection_kib", "handshake_ms"),
            ratio="connection_kib",
        ),
        Scenario(
            "handshakes",
            "1,000 connections, one by one",
            {"watchers": 10, "rate": 10, "idle": 1000, "idle_jobs": 100},
            figures=("handshake_ms", "connection_kib"),
            ratio="handshake_ms",
        ),
        Scenario(
            "crowd",
            "1,000 watchers connect at once, while 100 watch a job with 100 events/s",
            {"watchers": 100, "rate": 100, "crowd": 1000, "idle_jobs": 10},
            figures=("let_in_ms", "served_ms", "crowd_p99_ms", "p99_ms"),
            ratio="let_in_ms",
        ),
        Scenario(
            "returning",
            "200 watchers of 20,000 unfinished jobs return after a crash, half with a cursor; "
            "beside them 100 events/s of one job, and 100 reads/s",
            {"watchers": 1, "rate": 100, "crowd": 200, "hello": 1, "polls": 1, "poll_rate": 100, "idle_jobs": 19_999},
            figures=(
                "resumed_max_ms",
                "served_p50_ms",
                "served_ms",
                "crowd_p50_ms",
                "crowd_p99_ms",
                "crowd_read_p99_ms",
                "crowd_cpu_ms",
            ),
            ratio="crowd_p99_ms",
            servers=("progressd",),
            crowd_watches_all=True,
            restarted=True,
        ),
        Scenario(
            "pages",
            "100 open pages (`/ws/jobs?interval=1`), 10,000 running jobs; 1,000 of them move each second",
            {"jobs": 1000, "watchers": 100, "rate": 1000, "idle_jobs": 9000, "warmup_ms": 4000},
            figures=("server_busy", "deliveries_s", "event_us", "p50_ms", "p99_ms", "max_ms", "growth_mib"),
            ratio="server_busy",
            servers=("progressd",),
            variants=(
                Variant(PAGES, query="?interval=1"),
                Variant("without"),
                Variant("interval of 1 s, 5,000 events/s", {"rate": 5000}, query="?interval=1"),
            ),
            all_jobs=True,
            settings={"PROGRESSD_INGEST_MAX_CONNECTIONS": "2000"},
        ),
        Scenario(
            "event-cost",
            "10 jobs with 10 watchers each, 500 events/s in total, with idle watchers or finished jobs",
            {"jobs": 10, "watchers": 100, "rate": 500},
            figures=("event_us", "p50_ms", "p99_ms"),
            ratio="event_us",
            servers=("progressd",),
            variants=(
                Variant("alone"),
                Variant("10,000 idle watchers of other jobs", {"idle": 10_000, "idle_jobs": 100}),
                Variant("1,000,000 finished jobs in the store", finished_jobs=1_000_000),
            ),
            # No heartbeats in the steady phase: their cost is not one of events.
            settings={"PROGRESSD_LIMITS_HEARTBEAT_INTERVAL": "120"},
        ),
        Scenario(
            "one-producer",
            "One producer at its maximum rate, 10 watchers",
            {"watchers": 10, "rate": 0},
            figures=("events_s", "event_us", "deliveries_s", "growth_mib", "server_busy", "client_busy"),
            ratio="events_s",
        ),
        Scenario(
            "polling",
            "20 connections that poll a job, alone or beside 500 watchers of 100 events/s",
            {"watchers": 1, "rate": 1, "polls": 20, "idle_jobs": 1},
            figures=("reads_s", "read_us", "read_p99_ms", "p50_ms", "p99_ms", "server_busy"),
            ratio="reads_s",
            servers=("progressd",),
            variants=(
                Variant(READS),
                Variant(UNCHANGED, {"unchanged": 1}),
                Variant(WATCHED, {"watchers": 500, "rate": 100, "polls": 0}),
                Variant("both: 3,000 reads/s", {"watchers": 500, "rate": 100, "poll_rate": 3000}),
                Variant("both: 3,000 304s/s", {"watchers": 500, "rate": 100, "poll_rate": 3000, "unchanged": 1}),
            ),
        ),
        Scenario(
            "slow-watchers",
            "`/ws/jobs`, 20 watchers, 50 jobs, 2,000 events/s in total; a further watcher stops reading, "
            "another reads 100 kbit/s",
            {"jobs": 50, "watchers": 20, "rate": 2000},
            figures=("p50_ms", "p99_ms", "max_ms", "deliveries_s", "growth_mib"),
            ratio="p99_ms",
            variants=(Variant("without"), Variant("with", {"stalled": 1, "slow": 1})),
            all_jobs=True,
        ),
    )
}
