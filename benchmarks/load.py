"""Run the load client against a server, and compute the figures."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.install import BUILT
from benchmarks.jobs import message_size, register, state_with_finished_jobs
from benchmarks.scenarios import Scenario, Variant
from benchmarks.servers import CORE, Running, Server, ServerFailed, running

CLIENT_CORE: Final = CORE + 1
RUN_SECONDS: Final = 400.0  # limit of a run
WRITE_BEHIND: Final = 2.0  # seconds until the newest progress of all jobs is stored

Figures = Mapping[str, float]


class Sample(NamedTuple):
    """The figures of a run, or why it failed."""

    scenario: str
    variant: str
    server: str
    run: int
    figures: Figures
    failure: str = ""


def run(scenario: Scenario, variant: Variant, server: Server, number: int, steady: float) -> Sample:
    """Start the server, load it for `steady` seconds, and stop it."""
    load = {"jobs": 1, "idle_jobs": 0, **scenario.load, **variant.load, "steady_ms": int(1000 * steady)}
    state = state_with_finished_jobs(variant.finished_jobs) if variant.finished_jobs else None
    key = (scenario.name, variant.name, server.name, number)
    try:
        with _up(scenario, server, load["jobs"] + load["idle_jobs"], state) as (up, cursor):
            try:
                raw = _measured(_options(scenario, variant, server, load, up, cursor))
            except _LoadFailed as error:
                raise _LoadFailed(
                    f"{error}; the log of {server.name} ends with: {up.place.log_tail() or 'nothing'}"
                ) from None
    except (ServerFailed, _LoadFailed) as error:
        return Sample(*key, {}, str(error))
    return Sample(*key, {**raw, **dict(_derived(raw, load))})


@contextlib.contextmanager
def _up(scenario: Scenario, server: Server, jobs: int, state: Path | None) -> Iterator[tuple[Running, str]]:
    """Start the server, and register jobs. Return the server, and a cursor that a watcher would have."""
    if not server.is_progressd:
        with running(server, {}, state) as up:
            yield up, ""
    elif not scenario.restarted:
        with running(server, scenario.settings, state) as up:
            yield up, register(up.place.socket, jobs)
    else:
        with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as kept:
            with running(server, scenario.settings, Path(kept)) as up:
                cursor = register(up.place.socket, jobs)
                time.sleep(WRITE_BEHIND)
                up.kill()
            with running(server, scenario.settings, Path(kept)) as up:
                yield up, cursor


class _LoadFailed(Exception):
    """The load client failed."""


def _options(
    scenario: Scenario, variant: Variant, server: Server, load: Mapping[str, int], up: Running, cursor: str
) -> Mapping[str, object]:
    numbers = {name: value for name, value in load.items() if name != "idle_jobs" or value}
    publish = server.publish_all if scenario.all_jobs else server.publish
    crowd = {"crowd_watch": "/ws/jobs", "crowd_since": f"?since={cursor}"} if scenario.crowd_watches_all else {}
    return {
        **numbers,
        **crowd,
        "port": up.place.port,
        "servers": ",".join(map(str, up.pids)),
        "watch": ("/ws/jobs" if scenario.all_jobs else "/ws/jobs/{id}") + variant.query,
        "producer": up.place.socket,
        "http": int(bool(publish)),
        "publish": publish,
        "size": 0 if server.is_progressd else message_size(),
        "snapshot": int(server.is_progressd),
        "finish": int(server.is_progressd and bool(load.get("slow"))),
    }


def _measured(options: Mapping[str, object]) -> Figures:
    command = ["taskset", "-c", str(CLIENT_CORE), str(BUILT / "load")]
    command += [f"{name}={value}" for name, value in options.items()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _LoadFailed(f"not done after {RUN_SECONDS:.0f} s") from None
    if done.returncode:
        raise _LoadFailed(done.stderr.strip() or f"the load client ended with {done.returncode}")
    return {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}


def _derived(raw: Figures, load: Mapping[str, int]) -> Mapping[str, float]:
    seconds, cpu = raw["seconds"], raw["server_cpu_us"]
    figures = {
        "events_s": raw["events"] / seconds,
        "deliveries_s": raw["deliveries"] / seconds,
        "server_busy": 100e-6 * cpu / seconds,
        "client_busy": 100e-6 * raw["client_cpu_us"] / seconds,
        "growth_mib": raw["memory_growth_bytes"] / 2**20,
    }
    if raw["events"]:
        figures["event_us"] = cpu / raw["events"]
    if raw["deliveries"]:
        figures["cpu_us"] = cpu / raw["deliveries"]
        figures["frame_bytes"] = raw["bytes"] / raw["deliveries"]
    if raw["reads"]:
        figures["reads_s"] = raw["reads"] / seconds
        figures["read_us"] = cpu / raw["reads"]
    if idle := load.get("idle", 0):
        figures["connection_kib"] = raw["idle_memory_bytes"] / idle / 1024
        figures["handshake_ms"] = raw["idle_cpu_us"] / idle / 1000
    for old, new in RENAMED.items():
        if old in raw:
            figures[new] = raw[old]
    if "stalled_ends" in raw and load["jobs"]:
        figures["slow_complete"] = float(all(_is_complete(raw, name, load["jobs"]) for name in ("stalled", "slow")))
    return figures


RENAMED: Final = {
    "usual_p50_ms": "p50_ms",
    "usual_p99_ms": "p99_ms",
    "usual_max_ms": "max_ms",
    "read_p99_ms": "read_p99_ms",
    "crowd_let_in_ms": "let_in_ms",
    "crowd_served_ms": "served_ms",
}


def _is_complete(raw: Figures, name: str, jobs: int) -> bool:
    """Return whether a slow watcher received every end and newest progress, or close code 4000 (reconnect)."""
    complete = raw[f"{name}_ends"] == 2 * jobs and raw[f"{name}_newest"] == jobs
    return complete or raw[f"{name}_close_code"] == 4000
