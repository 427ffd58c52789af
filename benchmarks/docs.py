"""Write the measured part of docs/benchmarks.md; the rest is written by hand."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Final

from benchmarks.load import Sample
from benchmarks.machine import machine, versions
from benchmarks.paths import HERE
from benchmarks.scenarios import Scenario
from benchmarks.table import scenario_table, targets_table
from benchmarks.targets import reached

PAGE: Final = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: from here to the end mark, --write-docs writes -->", "<!-- end of measured -->"


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
        f"- Machine: {machine()}.\n- Versions: {versions()}.\n- {_frames(samples)}",
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
        for whose, own in (("progressd's", True), ("the peers'", False))
    }
    told = " and ".join(f"{whose} {median(found):.0f} bytes" for whose, found in sizes.items() if found)
    return f"Frames: {told}, header included."
