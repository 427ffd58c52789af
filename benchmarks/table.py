"""The tables in Markdown, also for a terminal: medians, with minimum and maximum in brackets."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Final, NamedTuple

from benchmarks.load import Sample
from benchmarks.scenarios import Scenario, Variant
from benchmarks.servers import SERVERS
from benchmarks.targets import Reached


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
    "crowd_p99_ms": Column("p99 of other watchers, ms", ".1f"),
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
    failures = sorted({f"{s.server} failed: {s.failure}" for s in samples if s.failure})
    return "\n".join(
        [f"### {scenario.title}", "", *_markdown([head, *rows]), *(f"\n{failure}" for failure in failures)]
    )


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
