"""Collect the metrics of the daemon on request. Only the lag of the event loop is measured here."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from progressd.core.batch import BatchStatus
from progressd.core.messages import JobStatus
from progressd.engine.view import Engine
from progressd.files.quota import DiskUsage
from progressd.http.streams import HTTPStreams
from progressd.net.connection_log import ConnectionLog
from progressd.ws.server import WebSocketServer

LAG_INTERVAL: Final = 0.5  # seconds between two measurements


@dataclass(eq=False)
class MetricsCollector(Collector):
    """Collect the metrics of all parts of the daemon. `run` measures the event loop."""

    engine: Engine
    job_files: DiskUsage
    websockets: WebSocketServer
    streams: HTTPStreams
    connection_log: ConnectionLog
    workers: int
    rejected: Counter[str] = field(default_factory=Counter)  # rejected requests, by status
    started_at: float = field(default_factory=time.time)  # seconds since 1970
    lag: float = field(default=0.0, init=False)  # seconds by which the event loop was late at the last measurement
    max_lag: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    @property
    def uptime(self) -> float:
        """Return the seconds since the start."""
        return time.time() - self.started_at

    async def run(self) -> None:
        """Measure the event loop until cancelled."""
        while True:
            due = trio.current_time() + LAG_INTERVAL
            await trio.sleep_until(due)
            self.lag = max(0.0, trio.current_time() - due)
            self.max_lag = max(self.max_lag, self.lag)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, for prometheus_client."""
        yield from self._job_metrics()
        yield from self._event_metrics()
        yield from self._connection_metrics()
        yield _gauge("superbook_uptime_seconds", "Seconds since the start of the daemon.", self.uptime)
        yield _gauge("superbook_workers", "Jobs that the daemon runs at the same time.", self.workers)
        yield _gauge("progressd_event_loop_lag_seconds", "Current delay of the event loop.", self.lag)
        yield _gauge(
            "progressd_event_loop_lag_max_seconds", "Longest delay of the event loop since the start.", self.max_lag
        )

    def _job_metrics(self) -> Iterator[Metric]:
        counters = self.engine.ingest.counters
        yield _counters(
            "superbook_jobs", "Jobs that reached this status.", "status", [(s, counters.jobs[s]) for s in JobStatus]
        )
        yield _counters(
            "superbook_batches",
            "Batches that reached this status.",
            "status",
            [(s, counters.batches[s]) for s in BatchStatus],
        )
        yield from counters.processing.collect()
        yield _counter("superbook_pages_processed", "Pages of completed jobs.", counters.pages)
        yield _gauge("progressd_unfinished_jobs", "Unfinished jobs.", len(self.engine.registry.unfinished))
        yield _gauge(
            "progressd_job_files_bytes", "Bytes of the files of jobs, with uploads in progress.", self.job_files.total
        )

    def _event_metrics(self) -> Iterator[Metric]:
        ingest, broadcaster = self.engine.ingest, self.engine.broadcaster
        yield _counters(
            "progressd_events",
            "Events from producers and from the daemon itself.",
            "outcome",
            [("accepted", ingest.counters.events), ("rejected", ingest.counters.rejected)],
        )
        yield _gauge(
            "progressd_ingest_queue_length", "Submissions and deletions that wait in the ingest queue.", ingest.queued
        )
        yield from ingest.health.commit_durations.collect()
        yield from self.engine.store.delete_durations.collect()
        yield _counter(
            "progressd_deliveries",
            "Live messages times their watchers, before filters. Replayed messages are not counted.",
            broadcaster.traffic.messages,
        )
        yield _counter("progressd_delivered_bytes", "Bytes of these messages, in frames.", broadcaster.traffic.bytes)
        yield _gauge("progressd_active_topics", "Topics that have watchers.", broadcaster.watched)
        yield _counter(
            "progressd_messages_coalesced",
            "Progress messages that newer progress replaced.",
            self.websockets.budget.coalesced,
        )
        yield _gauge(
            "progressd_send_buffer_bytes", "Bytes that wait to be sent to watchers.", self.websockets.budget.used
        )

    def _connection_metrics(self) -> Iterator[Metric]:
        connection_log = self.connection_log
        yield _gauge("superbook_websocket_connections", "Open WebSockets.", len(self.websockets))
        yield _gauge("progressd_http_streams", "Open event streams and long polls.", len(self.streams))
        yield _gauge("progressd_connections", "Open connections of every kind.", connection_log.open)
        yield _counter("progressd_connections_accepted", "Connections since the start.", connection_log.accepted)
        closed = CounterMetricFamily(
            "progressd_connections_closed", "Closed connections.", labels=("outcome", "reason")
        )
        for (outcome, reason), count in sorted(connection_log.counts.items()):
            closed.add_metric((outcome, reason), count)
        yield closed
        handshakes = [
            (reason, count) for (kind, reason), count in sorted(connection_log.counts.items()) if kind == "rejected"
        ]
        yield _counters("progressd_handshakes_rejected", "Rejected handshakes.", "reason", handshakes)
        text = "Rejected requests, without health probes."
        yield _counters("progressd_requests_rejected", text, "status", sorted(self.rejected.items()))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _counters(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, count in values:
        family.add_metric((value,), count)
    return family
