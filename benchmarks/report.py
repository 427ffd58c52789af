"""The results: tables in Markdown, the measured part of docs/benchmarks.md, and the README's chart."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.install import HERE, NODE_MODULES, PYTHON
from benchmarks.load import Sample
from benchmarks.scenarios import SCENARIOS, Scenario, Variant
from benchmarks.servers import SERVERS
from benchmarks.targets import Reached, reached


class Column(NamedTuple):
    """How a figure is shown."""

    title: str
    format: str


COLUMNS: Final = {
    "cpu_us": Column("CPU per delivery, µs", ".2f"),
    "deliveries_s": Column("deliveries/s", ",.0f"),
    "events_s": Column("events/s", ",.0f"),
    "event_us": Column("CPU per event, µs", ".1f"),
    "p50_ms": Column("p50, ms", ".2f"),
    "p99_ms": Column("p99, ms", ".2f"),
    "max_ms": Column("max, ms", ".1f"),
    "server_busy": Column("server's core, %", ".0f"),
    "client_busy": Column("client's core, %", ".0f"),
    "connection_kib": Column("memory per connection, KiB", ".1f"),
    "handshake_ms": Column("CPU per handshake, ms", ".3f"),
    "let_in_ms": Column("all connected, ms", ".0f"),
    "served_ms": Column("all with first message, ms", ".0f"),
    "resumed_max_ms": Column("all with a cursor served, ms", ".0f"),
    "served_p50_ms": Column("half of the others, ms", ".0f"),
    "crowd_p50_ms": Column("p50 of other watchers, ms", ".1f"),
    "crowd_p99_ms": Column("p99 of other watchers, ms", ".1f"),
    "crowd_read_p99_ms": Column("p99 of reads, ms", ".1f"),
    "crowd_cpu_ms": Column("CPU, ms", ",.0f"),
    "reads_s": Column("reads/s", ",.0f"),
    "read_us": Column("CPU per read, in total, µs", ".0f"),
    "read_p99_ms": Column("p99 of reads, ms", ".1f"),
    "growth_mib": Column("memory growth, MiB", ".1f"),
}


def scenario_table(scenario: Scenario, samples: Sequence[Sample]) -> str:
    """Return one row per server and variant. The last column is a ratio, run by run."""
    samples = [sample for sample in samples if sample.scenario == scenario.name]
    base = scenario.variants[0].name
    several = len(scenario.variants) > 1
    compared = f"progressd ÷ server ({COLUMNS[scenario.ratio].title.partition(',')[0]})"
    head = ["server", *(["load"] if several else []), *(COLUMNS[name].title for name in scenario.figures)]
    head.append(f"÷ {base}" if several else compared)
    rows = []
    for server in scenario.servers:
        for variant in scenario.variants:
            runs = [s for s in samples if s.server == server and s.variant == variant.name]
            if not runs:
                continue
            row = [SERVERS[server].title, *([variant.name] if several else [])]
            row += [_cell([s.figures[name] for s in runs if name in s.figures], name) for name in scenario.figures]
            row.append(_ratio(scenario, variant, server, samples))
            rows.append(row)
    return _section(scenario, [head, *rows], samples)


def comparison_table(scenario: Scenario, samples: Sequence[Sample], daemons: Sequence[str]) -> str:
    """Return one row per figure: each daemon, and its ratio to the first daemon, run by run."""
    figures = {(s.variant, s.server, s.run): s.figures for s in samples if s.scenario == scenario.name}
    runs = sorted({run for *_, run in figures})
    rows = [["load", "figure", *daemons, *(f"{number} ÷ 1" for number in range(2, len(daemons) + 1))]]
    for variant, name in product(scenario.variants, scenario.figures):
        by_run = [[figures.get((variant.name, daemon, run), {}).get(name) for daemon in daemons] for run in runs]
        whole = [[value for value in values if value is not None] for values in by_run if None not in values]
        if not whole:
            continue
        row = [variant.name, COLUMNS[name].title, *(_cell(values, name) for values in zip(*whole, strict=True))]
        for column in range(1, len(daemons)):
            ratios = [values[column] / values[0] for values in whole if values[0]]
            row.append(_spread(ratios, "{:.3f}".format) if ratios else "—")
        rows.append(row)
    return _section(scenario, rows, samples)


def targets_table(results: Iterable[Reached]) -> str:
    """Return the targets and the figures."""
    rows = [["scenario", "figure", "target", "measured", ""]]
    for result in results:
        target = result.target
        wanted = f"≤ {target.most:,g}" if target.most is not None else f"≥ {target.least:,g}"
        measured = _spread(result.values, ("{:,.0f}" if result.value >= 1000 else "{:.2f}").format)
        unit = f" {target.unit}" if target.unit else ""
        rows.append([target.scenario, target.what, wanted + unit, measured, "yes" if result.met else "**no**"])
    return "\n".join(_markdown(rows))


def _section(scenario: Scenario, rows: Sequence[Sequence[str]], samples: Iterable[Sample]) -> str:
    failed = {f"{s.server} failed: {s.failure}" for s in samples if s.failure and s.scenario == scenario.name}
    return "\n".join([f"### {scenario.title}", "", *_markdown(rows), *(f"\n{failure}" for failure in sorted(failed))])


def _ratio(scenario: Scenario, variant: Variant, server: str, samples: Sequence[Sample]) -> str:
    """Return the ratio to the first variant if there are several, otherwise that of progressd to this server."""
    base = scenario.variants[0].name
    above, below = (variant.name, "progressd"), (variant.name, server)
    if len(scenario.variants) > 1:
        above, below = (variant.name, server), (base, server)
    figures = {(s.variant, s.server, s.run): s.figures.get(scenario.ratio) for s in samples}
    pairs = [(figures.get((*above, run)), figures.get((*below, run))) for run in sorted({s.run for s in samples})]
    ratios = [one / other for one, other in pairs if one and other]
    return _spread(ratios, "{:.2f}".format) if ratios else "—"


def _cell(values: Sequence[float], name: str) -> str:
    return _spread(values, f"{{:{COLUMNS[name].format}}}".format) if values else "—"


def _spread(values: Sequence[float], text: Callable[[float], str]) -> str:
    least, most = text(min(values)), text(max(values))
    return text(median(values)) if least == most else f"{text(median(values))} ({least}–{most})"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


# docs/benchmarks.md

PAGE: Final = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: --write-docs rewrites everything from here to the end mark -->", "<!-- end of measured -->"


def write_docs(scenarios: Iterable[Scenario], samples: Sequence[Sample], run: str) -> None:
    """Put the tables into the page. `run`: a sentence about the runs."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE} has lost its marks {BEGIN!r} and {END!r}")
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured(scenarios, samples, run)}\n\n{END}{after}", encoding="utf-8")


def measured(scenarios: Iterable[Scenario], samples: Sequence[Sample], run: str) -> str:
    """Return machine, targets and tables in Markdown."""
    results = reached(samples)
    parts = [
        f"Measured on {datetime.now(UTC):%Y-%m-%d}. {run}",
        f"- Machine: {_machine()}.\n- Versions: {_all_versions()}.\n- {_frames(samples)}",
    ]
    if results:
        met = sum(result.met for result in results)
        parts += [f"## Targets\n\n{met} of {len(results)} reached.", targets_table(results)]
    parts += ["## All figures", *(scenario_table(scenario, samples) for scenario in scenarios)]
    return "\n\n".join(parts)


def _frames(samples: Sequence[Sample]) -> str:
    sizes = {
        whose: [
            s.figures["frame_bytes"] for s in samples if "frame_bytes" in s.figures and (s.server == "progressd") is own
        ]
        for whose, own in (("progressd's have", True), ("those of the other servers", False))
    }
    shown = " and ".join(f"{whose} {median(found):.0f} bytes" for whose, found in sizes.items() if found)
    return f"Frames: {shown}, header included."


def _machine() -> str:
    """Return processor, memory and system as text."""
    [processor] = set(re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())) or {"unknown processor"}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return (
        f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, {system}, Linux {platform.release()}, "
        f"TCP with {congestion}"
    )


def _all_versions() -> str:
    """Return the versions of everything that is installed, as text."""
    return ", ".join(f"{name} {number}" for name, number in _versions() if number)


def _versions() -> Iterator[tuple[str, str]]:
    yield "Python", platform.python_version()
    for name in ("progressd", "trio", "trio-websocket"):
        yield name, version(name)
    yield "nginx", _printed("nginx", "-v").rpartition("/")[2]
    yield "Nchan", _printed("dpkg-query", "--show", "--showformat=${Version}", "libnginx-mod-nchan")
    for name in ("websockets", "starlette", "uvicorn", "uvloop"):
        yield name, _printed(str(PYTHON), "-c", f"from importlib.metadata import version; print(version({name!r}))")
    yield "Node", _printed("node", "--version").removeprefix("v")
    package = NODE_MODULES / "ws" / "package.json"
    yield "ws", json.loads(package.read_text())["version"] if package.exists() else ""


def _printed(*command: str) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""  # not installed, as its server is not measured
    return done.stdout.strip()


# The chart

PICTURE: Final = HERE.parent / "docs" / "images" / "benchmarks.svg"
SHOWN: Final = ("fan-out-100", "fan-out-300", "all-jobs")
OMITTED: Final = ("trio-websocket", "floor")  # ten times as long; not a server

WIDTH, NAMES, FIGURES, BAR, GROUP = 720, 170, 64, 18, 34  # px
STYLE: Final = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
rect { fill: #afb8c1 }
.own { fill: #0969da }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } rect { fill: #545d68 } .own { fill: #4493f8 } }
"""


def write_chart(samples: Sequence[Sample]) -> None:
    """Draw the chart."""
    groups = [(SCENARIOS[name].title, list(_bars(name, samples))) for name in SHOWN]
    longest = max(value for _, bars in groups for _, value in bars)
    parts, y = [], 0
    for title, bars in groups:
        parts.append(f'<text class="title" x="0" y="{y + 20}">{escape(title.replace("`", ""))}</text>')
        y += GROUP
        for server, value in sorted(bars, key=lambda bar: bar[1]):
            parts.append(_bar(server, value, (WIDTH - NAMES - FIGURES) * value / longest, y))
            y += BAR
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 6}" width="{WIDTH}" height="{y + 6}">'
    title = "<title>CPU per delivery in microseconds: less is better</title>"
    PICTURE.write_text("\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>\n"]), encoding="utf-8")


def _bars(scenario: str, samples: Iterable[Sample]) -> Iterable[tuple[str, float]]:
    for server in SCENARIOS[scenario].servers:
        runs = [s.figures["cpu_us"] for s in samples if (s.scenario, s.server) == (scenario, server) and s.figures]
        if runs and server not in OMITTED:
            yield server, median(runs)


def _bar(server: str, value: float, length: float, y: int) -> str:
    own = ' class="own"' if server == "progressd" else ""
    return (
        f'<text x="{NAMES - 8}" y="{y + 13}" text-anchor="end">{escape(SERVERS[server].title.replace("`", ""))}</text>'
        f'<rect{own} x="{NAMES}" y="{y + 3}" width="{length:.1f}" height="{BAR - 6}" rx="2"/>'
        f'<text x="{NAMES + length + 6:.1f}" y="{y + 13}">{value:.1f} µs</text>'
    )
