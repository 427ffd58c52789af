"""Measure the estimates of the remaining time with recorded runs: `python -m benchmarks.eta`, or `make eta`.

The intervals are calibrated by split conformal prediction: quantiles of the errors of some runs give the intervals of
the others. Each run is in one of five folds, and its intervals come from the other four. With `--write`, the command
writes the quantiles of all runs into the daemon, and the tables into the documentation.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from progressd.core import eta_quantiles

from benchmarks.eta.record import RECORDED
from benchmarks.eta.replay import (
    OTHERS,
    Estimate,
    Glance,
    Recorded,
    Replay,
    Table,
    covered,
    error,
    load,
    replay,
    score,
    use,
)

Score = tuple[int, float, float]
"""The run, the fraction of the time that has passed, and the error."""

FOLDS: Final = 5
KNOTS: Final = 9  # points of a table of quantiles
LEVELS: Final = (0.1, 0.5, 0.9)
TRUST: Final = 0.5  # how much of a median error is corrected; other machines have other errors
FEWEST: Final = 8  # runs for the quantiles of a knot
ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs/eta.md"
BEGIN, END = "<!-- written by make eta -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eta", description=__doc__)
    parser.add_argument("--runs", type=Path, default=RECORDED, help="the recorded runs")
    parser.add_argument("--write", action="store_true", help="write the quantiles and docs/eta.md")
    arguments = parser.parse_args()
    runs = load(arguments.runs)
    calibration = Calibration(runs)
    text = report(runs, calibration)
    print(text)
    if arguments.write:
        write_quantiles(*calibration.of(range(len(runs))))
        write_docs(text)


class Calibration:
    """The errors of all runs, from which the quantiles of some follow."""

    def __init__(self, runs: Sequence[Recorded]) -> None:
        first, later = replay(runs, history=False), replay(runs, history=True)
        self._of_speed = self._scores(first, lambda shown: shown.known is None and shown.place > 0)
        self._of_runs = self._scores(later, lambda shown: shown.known is not None and shown.place > 0)
        self._of_duration = self._scores(later, lambda shown: shown.place <= 0)

    def _scores(self, one: Replay, which: Callable[[Estimate], bool]) -> list[Score]:
        return [(glance.run, glance.shown.place, score(glance)) for glance in one.glances if which(glance.shown)]

    def of(self, runs: Iterable[int]) -> tuple[Sequence[float], Table, Table]:
        """Return the quantiles of these runs: without progress, without history, and with both."""
        among = set(runs)
        of_duration, of_speed, of_runs = (
            [one for one in scores if one[0] in among] for scores in (self._of_duration, self._of_speed, self._of_runs)
        )
        count = len({run for run, _, _ in of_duration})
        values = [(value, 1.0, run) for run, _, value in of_duration]
        low, high = (_quantile(values, _corrected(1 - level, count)) for level in (LEVELS[0], LEVELS[-1]))
        durations = (round(min(low, 0.99), 3), 0.5, round(max(high, 0.01), 3))
        return durations, quantiles(of_speed), quantiles(of_runs)


def quantiles(scores: Sequence[Score]) -> Table:
    """Return the quantiles at each knot, of the errors near it. Nearer errors count more."""
    table = []
    for knot in range(KNOTS):
        reach = 1.0
        while True:
            near = [
                (value, weight, run)
                for run, place, value in scores
                if (weight := 1 - abs(place * (KNOTS - 1) - knot) / reach) > 0
            ]
            if len({run for _, _, run in near}) >= FEWEST or reach > KNOTS:
                break
            reach += 0.5
        count = len({run for _, _, run in near})
        low, middle, high = (_quantile(near, _corrected(level, count)) for level in LEVELS)
        table.append((round(low, 3), round(middle * TRUST, 3), round(high, 3)))
    return table


def _corrected(level: float, count: int) -> float:
    """Return the level for a sample of this size, so that a new value is within with the nominal probability."""
    return 0.5 + (level - 0.5) * (count + 1) / max(count, 1)


def _quantile(values: Iterable[tuple[float, float, int]], level: float) -> float:
    ordered = sorted(values)
    wanted, total = level * sum(weight for _, weight, _ in ordered), 0.0
    for value, weight, _ in ordered:
        total += weight
        if total >= wanted:
            return value
    return ordered[-1][0] if ordered else 0.0


def held_out(
    runs: Sequence[Recorded], calibration: Calibration, fold_of: Callable[[int], int], *, history: bool
) -> Replay:
    """Replay each run with the quantiles of the runs in the other folds."""
    glances, looks, moves = list[Glance](), 0, dict[str, int]()
    for fold in sorted({fold_of(number) for number in range(len(runs))}):
        use(*calibration.of(number for number in range(len(runs)) if fold_of(number) != fold))
        one = replay(runs, history=history)
        glances += [glance for glance in one.glances if fold_of(glance.run) == fold]
        looks, moves = one.looks, dict(one.moves)
    use(eta_quantiles.OF_DURATION, eta_quantiles.OF_SPEED, eta_quantiles.OF_RUNS)
    return Replay(glances, looks, moves)


def report(runs: Sequence[Recorded], calibration: Calibration) -> str:
    """Return the tables in Markdown."""
    tools = sorted({run.tool for run in runs})
    later = held_out(runs, calibration, lambda number: number % FOLDS, history=True)
    first = held_out(runs, calibration, lambda number: number % FOLDS, history=False)
    others = held_out(runs, calibration, lambda number: tools.index(runs[number].tool), history=True)
    lines = [
        f"{len(runs)} runs of {len(tools)} tools, with {GLANCES_TEXT} of each.",
        "",
        "| runs | coverage | width | progressd | tqdm | ninja | linear |",
        "|---|---|---|---|---|---|---|",
        _row("**all, with history**", later.glances),
        _row("**all, without history**", first.glances),
    ]
    for tool in tools:
        mine = [glance for glance in later.glances if runs[glance.run].tool == tool]
        count = sum(run.tool == tool for run in runs)
        lines.append(_row(f"{tool} ({count})", mine))
    unseen = _percent(sum(map(covered, others.glances)) / max(len(others.glances), 1))
    shown = _percent(len(later.glances) / max(later.looks, 1))
    compared = _percent(sum(glance.others is not None for glance in first.glances) / max(first.looks, 1))
    moves = ", ".join(f"{name} {later.moves[name] / len(runs):.1f}" for name in ("progressd", *OTHERS))
    lines += [
        "",
        f"- If no run of the same tool is used for the calibration, the coverage is {unseen}.",
        f"- An estimate is shown for {shown} of the time with history, and for {compared} without.",
        f"- Jumps per run: {moves}. A jump moves the predicted end by more than 10 % of the remaining time, and by more"
        " than a second.",
    ]
    return "\n".join(lines)


GLANCES_TEXT: Final = "20 evenly spaced samples"


def _row(name: str, glances: Sequence[Glance]) -> str:
    if not glances:
        return f"| {name} | – | – | – | – | – | – |"
    coverage = sum(map(covered, glances)) / len(glances)
    width = median((glance.shown.eta.high - glance.shown.eta.low) / (glance.true + glance.since) for glance in glances)
    comparable = [glance for glance in glances if glance.others is not None]
    errors = [median(error(glance, other) for glance in comparable) if comparable else math.nan
              for other in ("progressd", *OTHERS)]  # fmt: skip
    return f"| {name} | {_percent(coverage)} | {_percent(width)} | {' | '.join(map(_percent, errors))} |"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def write_quantiles(of_duration: Sequence[float], of_speed: Table, of_runs: Table) -> None:
    """Write the quantiles into the daemon."""

    def rows(table: Table) -> str:
        return "(\n" + "".join(f"    {tuple(row)},\n" for row in table) + ")\n"

    path = Path(eta_quantiles.__file__)
    comments = re.split(r"(?m)^OF_\w+: Final = \((?:.*|(?:\n    .*)+\n)\)\n", path.read_text())
    values = (f"OF_DURATION: Final = {tuple(of_duration)}\n", f"OF_SPEED: Final = {rows(of_speed)}",
              f"OF_RUNS: Final = {rows(of_runs)}", "")  # fmt: skip
    path.write_text("".join(comment + value for comment, value in zip(comments, values, strict=True)))


def write_docs(text: str) -> None:
    """Write the tables into the documentation."""
    before, _, rest = DOCS.read_text().partition(BEGIN)
    DOCS.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
