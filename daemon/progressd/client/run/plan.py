"""How a run finds the progress of its command: what is added to the command, and what is searched."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from progressd.client.run.launch import is_open
from progressd.core.progress_pattern import ProgressPattern
from progressd.detect.plan import NONE, Plan, plan
from progressd.detect.presets import Presets

if TYPE_CHECKING:
    from progressd.detect.detector import Detector
    from progressd.detect.output_filter import OutputFilter

FIRST_PROGRESS_FD = 3
STDERR = 2


class Detection(NamedTuple):
    """What the outputs use: the detector, and filters for streams to which the plan has added frames."""

    detector: "Detector"
    new_filter: "Callable[[], OutputFilter] | None"


class RunPlan(NamedTuple):
    """A plan of `progressd.detect`, with what only `progressd run` needs."""

    plan: Plan
    command: Sequence[str]
    environment: Mapping[str, str]
    pattern: ProgressPattern | None
    progress_fd: int | None
    keeps_streams: bool

    def detection(self) -> Detection:
        """Return the detector and the filter. Their import may take longer than the command may wait."""
        from progressd.detect.detector import Detector
        from progressd.detect.output_filter import OutputFilter

        plan = self.plan
        return Detection(Detector(plan, self.pattern), (lambda: OutputFilter(plan)) if plan.hides else None)


def plan_run(command: Sequence[str], preset: str | None, pattern: str | None, *, adapt: bool) -> RunPlan:
    """Return the plan. Raises InvalidInput for an unknown preset, ValueError for an invalid pattern."""
    compiled = None if pattern is None else ProgressPattern(pattern)
    planned = plan(
        command,
        Presets.of_user(os.environ),
        adapt=adapt and pattern is None,
        name=preset,
        terminal=os.isatty(STDERR),
    )
    descriptor = None
    if planned.progress_fd:
        descriptor = FIRST_PROGRESS_FD
        while is_open(descriptor):
            descriptor += 1
    changed = planned.command if descriptor is None else planned.arguments(descriptor)
    return RunPlan(planned, changed, planned.environment, compiled, descriptor, preset == NONE and pattern is None)


def explanation(planned: RunPlan) -> str:
    """Return what a run would do, for people."""
    plan = planned.plan
    if planned.pattern is not None:
        return "progress from: the pattern of --progress-pattern"
    if planned.keeps_streams:
        return "progress from: what the command reports itself; its output is not read"
    if plan.preset is None:
        return "progress from: what the output shows, such as 42% or 3/12; no preset knows this command"
    lines = [f"progress from: {plan.preset.name}"]
    if plan.added:
        lines.append(f"{plan.added} (not with --no-adapt)")
    if plan.needs_terminal:
        lines.append(f"{plan.preset.name} shows its progress only on a terminal")
    return "\n".join(lines)
