"""The command: `python -m benchmarks` runs everything; with names of scenarios, those."""

import argparse
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from benchmarks.chart import write_chart
from benchmarks.docs import write_docs
from benchmarks.install import NotInstalled, install
from benchmarks.load import CLIENT_CORE, Sample, run
from benchmarks.machine import load_average
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.servers import FILES, SERVERS
from benchmarks.table import COLUMNS, scenario_table, targets_table
from benchmarks.targets import reached

RUNS, SECONDS = 3, 5.0
QUICK_SECONDS = 3.0


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which stops the servers, too
    _check_machine()
    install(arguments.servers)
    scenarios = [SCENARIOS[name] for name in arguments.scenarios or SCENARIOS]
    samples: list[Sample] = []
    busy = load_average()
    for scenario in scenarios:
        for sample in _samples(scenario, arguments.servers, arguments.runs, arguments.seconds):
            samples.append(sample)
            print(_line(scenario, sample), file=sys.stderr)
        print(scenario_table(scenario, samples), end="\n\n", flush=True)
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
    parser.add_argument("--runs", type=int, default=None, help=f"of each, interleaved; default: {RUNS}")
    parser.add_argument("--seconds", type=float, default=None, help=f"of the steady phase; default: {SECONDS:g}")
    parser.add_argument("--quick", action="store_true", help=f"one run of {QUICK_SECONDS:g} s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all runs to FILE")
    parser.add_argument("--write-docs", action="store_true", help="write docs/benchmarks.md and its chart")
    arguments = parser.parse_args()
    for names, known in ((arguments.scenarios, SCENARIOS), (arguments.servers, SERVERS)):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if arguments.write_docs and (arguments.scenarios or set(arguments.servers) != set(SERVERS)):
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


def _samples(scenario: Scenario, servers: Sequence[str], runs: int, seconds: float) -> Iterator[Sample]:
    """Run the servers alternately, so that other load on the machine affects all."""
    for number, server, variant in product(range(runs), scenario.servers, scenario.variants):
        if server in servers:
            yield run(scenario, variant, SERVERS[server], number, seconds)


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
