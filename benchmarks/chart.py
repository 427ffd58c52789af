"""The chart of the README: the CPU per delivery of each server, as an SVG for light and dark colours."""

from collections.abc import Iterable, Sequence
from html import escape
from statistics import median
from typing import Final

from benchmarks.load import Sample
from benchmarks.paths import HERE
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import SERVERS

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
