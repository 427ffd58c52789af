"""The last hour of the daemon in numbers, in memory, for charts. Without a chart open, a sample costs some counters."""

from collections import deque
from datetime import UTC, datetime
from typing import Final

import trio
from msgspec import Struct

from progressd.core.messages import JobStatus
from progressd.http.metrics import MetricsCollector

INTERVAL: Final = 15.0  # seconds
MAX_SAMPLES: Final = 241  # an hour, and one sample before it: about 200 bytes each


class StatsSample(Struct, frozen=True):
    """The daemon at one time. `completed` to `slow_watchers` are totals since the start."""

    time: datetime
    completed: int
    failed: int
    cancelled: int
    events: int
    deliveries: int
    slow_watchers: int
    unfinished: int
    watchers: int
    queue_length: int
    lag_seconds: float


class StatsHistory:
    """Keep a sample for every 15 seconds of the last hour."""

    def __init__(self, metrics: MetricsCollector) -> None:
        self._metrics = metrics
        self._samples = deque[StatsSample](maxlen=MAX_SAMPLES)

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            self._samples.append(self._sample())
            await trio.sleep(INTERVAL)

    def samples(self) -> list[StatsSample]:
        """Return the samples, the oldest first, and the current one."""
        return [*self._samples, self._sample()]

    def _sample(self) -> StatsSample:
        metrics = self._metrics
        counters, counts = metrics.engine.ingest.counters, metrics.connection_log.counts
        return StatsSample(
            time=datetime.now(UTC),
            completed=counters.jobs[JobStatus.COMPLETED],
            failed=counters.jobs[JobStatus.FAILED],
            cancelled=counters.jobs[JobStatus.CANCELLED],
            events=counters.events,
            deliveries=metrics.engine.broadcaster.traffic.messages,
            slow_watchers=sum(count for (_, reason), count in counts.items() if reason.startswith("4000")),
            unfinished=len(metrics.engine.registry.unfinished),
            watchers=len(metrics.websockets) + len(metrics.streams),
            queue_length=metrics.engine.ingest.queued,
            lag_seconds=round(metrics.lag, 4),
        )
