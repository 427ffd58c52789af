"""The command: `python -m benchmarks` runs all scenarios, or the named ones."""

import argparse
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from benchmarks.install import NotInstalled, install
from benchmarks.load import CLIENT_CORE, Sample, run
from benchmarks.report import COLUMNS, comparison_table, scenario_table, targets_table, write_chart, write_docs
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.servers import FILES, SERVERS, Server, progressd
from benchmarks.targets import reached

RUNS, SECONDS = 3, 5.0
QUICK_SECONDS = 3.0


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which stops the servers, too
    _check_machine()
    install(() if arguments.daemon else arguments.servers)
    scenarios = [SCENARIOS[name] for name in arguments.scenarios or SCENARIOS]
    daemons = [progressd(python, f"{number}: {python}") for number, python in enumerate(arguments.daemon, 1)]
    samples: list[Sample] = []
    busy = os.getloadavg()[0]
    for scenario in scenarios:
        servers = daemons or [SERVERS[name] for name in scenario.servers if name in arguments.servers]
        for sample in _samples(scenario, servers, arguments.runs, arguments.seconds, own_store=bool(daemons)):
            samples.append(sample)
            print(_line(scenario, sample), file=sys.stderr)
        names = [daemon.name for daemon in daemons]
        table = comparison_table(scenario, samples, names) if names else scenario_table(scenario, samples)
        print(table, end="\n\n", flush=True)
    if not daemons:
        print(targets_table(reached(samples)))
    if arguments.json:
        arguments.json.write_text(json.dumps([sample._asdict() for sample in samples], indent=1) + "\n")
    if arguments.write_docs:
        runs = f"{arguments.runs} runs" if arguments.runs > 1 else "One run"
        about = f"{runs} of {arguments.seconds:g} s each; the load average was {busy:.1f} at the start."
        write_docs(scenarios, samples, about)
        write_chart(samples)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Run progressd and its peers side by side under the same load."
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument(
        "--servers",
        type=lambda text: text.split(","),
        default=list(SERVERS),
        metavar="NAME,…",
        help=f"of {', '.join(SERVERS)}; default: all of the scenario",
    )
    parser.add_argument(
        "--daemon",
        action="append",
        default=[],
        metavar="PYTHON",
        help="instead of the servers, run the progressd that this Python has installed; repeat it to compare versions",
    )
    parser.add_argument("--runs", type=int, default=None, help=f"of each, interleaved; default: {RUNS}")
    parser.add_argument("--seconds", type=float, default=None, help=f"of the steady phase; default: {SECONDS:g}")
    parser.add_argument("--quick", action="store_true", help=f"one run of {QUICK_SECONDS:g} s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all runs to FILE")
    parser.add_argument("--write-docs", action="store_true", help="write docs/benchmarks.md and its chart")
    arguments = parser.parse_args()
    for names, known in ((arguments.scenarios, SCENARIOS), (arguments.servers, SERVERS)):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if arguments.write_docs and (arguments.scenarios or arguments.daemon or set(arguments.servers) != set(SERVERS)):
        parser.error("--write-docs needs all scenarios and servers, since it replaces all tables")
    arguments.runs = arguments.runs or (1 if arguments.quick else RUNS)
    arguments.seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS)
    return arguments


def _check_machine() -> None:
    """Require two cores, and descriptors for 10,000 connections."""
    if not {CLIENT_CORE - 1, CLIENT_CORE} <= os.sched_getaffinity(0):
        sys.exit("the benchmark needs two cores: one for the server, one for the load client")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        sys.exit(f"the benchmark needs {FILES} descriptors, and the limit is {hard}: raise it with ulimit -Hn {FILES}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


def _samples(
    scenario: Scenario, servers: Sequence[Server], runs: int, seconds: float, own_store: bool
) -> Iterator[Sample]:
    """Run the servers alternately, so that other load on the machine affects all. Every other run is in reverse order.

    `own_store`: omit the variants with a store of finished jobs, whose schema is that of this version.
    """
    variants = [variant for variant in scenario.variants if not (own_store and variant.finished_jobs)]
    for number, variant in product(range(runs), variants):
        for server in servers[:: -1 if number % 2 else 1]:
            yield run(scenario, variant, server, number, seconds)


def _line(scenario: Scenario, sample: Sample) -> str:
    shown = [
        f"{COLUMNS[name].title} {format(sample.figures[name], COLUMNS[name].format)}"
        for name in scenario.figures
        if name in sample.figures
    ]
    name = " ".join(filter(None, (sample.scenario, sample.server, sample.variant, f"run {sample.run + 1}")))
    return f"{name}: {sample.failure or ' · '.join(shown)}"


if __name__ == "__main__":
    try:
        main()
    except NotInstalled as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
