"""How a run finds the progress of its command: what is added to the command, and what is searched."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from progressd.client.run.launch import is_open
from progressd.core.errors import InvalidInput

if TYPE_CHECKING:
    from progressd.core.progress_pattern import ProgressPattern
    from progressd.detect.detector import Detector
    from progressd.detect.output_filter import OutputFilter
    from progressd.detect.plan import Plan

FIRST_PROGRESS_FD = 3
STDERR = 2
NONE = "none"  # the preset with which the output is not read
BUILT_IN = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "detect", "presets")
SYSTEM = "/etc/progressd/presets"


class Detection(NamedTuple):
    """What the outputs use: the detector, and filters for streams to which the plan has added frames."""

    detector: "Detector"
    new_filter: "Callable[[], OutputFilter] | None"
    estimates: bool  # whether the position in a file may be used


class RunPlan(NamedTuple):
    """A plan of `progressd.detect`, with what only `progressd run` needs. `plan`: None if no preset fits."""

    plan: "Plan | None"
    command: Sequence[str]
    environment: Mapping[str, str] = {}
    pattern: "ProgressPattern | None" = None
    progress_fd: int | None = None
    keeps_streams: bool = False

    @property
    def source(self) -> str:
        """Return what is known before the start about where the progress will be found; "" for nothing."""
        if self.pattern is not None:
            return "pattern"
        return self.plan.preset.name if self.plan is not None and self.plan.preset is not None else ""

    def detection(self) -> Detection:
        """Return the detector and the filter. Call it after the start, because the import takes long."""
        from progressd.detect.detector import Detector
        from progressd.detect.output_filter import OutputFilter
        from progressd.detect.plan import Plan

        plan = self.plan or Plan(tuple(self.command))
        return Detection(
            Detector(plan, self.pattern),
            (lambda: OutputFilter(plan)) if plan.hides else None,
            self.pattern is None and plan.enabled,
        )


def plan_run(command: Sequence[str], preset: str | None, pattern: str | None, *, adapt: bool) -> RunPlan:
    """Return the plan. Raises InvalidInput for an unknown preset or an invalid pattern."""
    if preset is None and pattern is None and not _may_have_preset(command):
        return RunPlan(None, command)
    from progressd.core.progress_pattern import ProgressPattern
    from progressd.detect.plan import plan
    from progressd.detect.presets import Presets

    try:
        compiled = None if pattern is None else ProgressPattern(pattern)
    except ValueError as error:
        raise InvalidInput(f"--progress-pattern: {error}") from None
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


def _may_have_preset(command: Sequence[str]) -> bool:
    """Return whether a word of the command has the name of a preset: reading presets takes long."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.environ.get("HOME") or "/", ".config")
    names = set[str]()
    for directory in (BUILT_IN, SYSTEM, os.path.join(home, "progressd", "presets")):
        try:
            names.update(os.path.splitext(name)[0] for name in os.listdir(directory))
        except OSError:
            continue
    words = {os.path.basename(word) for word in command}
    return not names.isdisjoint(words | {word.rstrip("0123456789.-") for word in words})


def explanation(planned: RunPlan) -> str:
    """Return what a run would do, for people."""
    plan = planned.plan
    if planned.pattern is not None:
        return "progress from: the pattern of --progress-pattern"
    if planned.keeps_streams:
        return "progress from: what the command reports itself; its output is not read"
    if plan is None or plan.preset is None:
        return "progress from: what the output shows, such as 42% or 3/12; no preset knows this command"
    lines = [f"progress from: {plan.preset.name}"]
    if plan.added:
        lines.append(f"{plan.added} (not with --no-adapt)")
    if plan.needs_terminal:
        lines.append(f"{plan.preset.name} shows its progress only on a terminal")
    return "\n".join(lines)
