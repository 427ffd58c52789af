"""Choose the source of a command's progress, and the arguments to add to the command."""

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
BUILT_IN_PRESETS = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "detect", "presets")
SYSTEM = "/etc/progressd/presets"


class Detection(NamedTuple):
    """The detector, and a filter for the output that the added arguments cause. `estimates`: use the file position."""

    detector: "Detector"
    new_filter: "Callable[[], OutputFilter] | None"
    estimates: bool


class RunPlan(NamedTuple):
    """A plan of `progressd.detect`, with the additions of `progressd run`. `plan`: None to make it after the start."""

    plan: "Plan | None"
    command: Sequence[str]
    environment: Mapping[str, str] = {}
    pattern: "ProgressPattern | None" = None
    progress_fd: int | None = None
    keeps_streams: bool = False

    @property
    def source(self) -> str:
        """Return where the progress will be found, as far as that is known before the start; "" for unknown."""
        if self.pattern is not None:
            return "pattern"
        if self.plan is not None and self.plan.preset is not None:
            return self.plan.preset.name
        return ""

    def detection(self) -> Detection:
        """Return the detector and the filter. Call it after the start, because the import is slow."""
        from progressd.detect.detector import Detector
        from progressd.detect.output_filter import OutputFilter

        plan = self.plan or _plan(self.command, NONE if self.keeps_streams else None, adapt=False)
        new_filter = (lambda: OutputFilter(plan)) if plan.hides else None
        return Detection(Detector(plan, self.pattern), new_filter, self.pattern is None and not self.keeps_streams)


def plan_run(command: Sequence[str], preset: str | None, pattern: str | None, *, adapt: bool) -> RunPlan:
    """Return the plan. Raises InvalidInput for an unknown preset or an invalid pattern."""
    if pattern is None and (preset == NONE or (preset is None and not (adapt and _may_adapt(command)))):
        return RunPlan(None, command, keeps_streams=preset == NONE)
    compiled = None if pattern is None else _compiled(pattern)
    planned = _plan(command, preset, adapt=adapt and pattern is None)
    descriptor = None
    if planned.progress_fd:
        descriptor = FIRST_PROGRESS_FD
        while is_open(descriptor):
            descriptor += 1
    changed = planned.command if descriptor is None else planned.arguments(descriptor)
    return RunPlan(planned, changed, planned.environment, compiled, descriptor)


def _compiled(pattern: str) -> "ProgressPattern":
    from progressd.core.progress_pattern import ProgressPattern

    try:
        return ProgressPattern(pattern)
    except ValueError as error:
        raise InvalidInput(f"--progress-pattern: {error}") from None


def _plan(command: Sequence[str], preset: str | None, *, adapt: bool) -> "Plan":
    from progressd.detect.plan import plan
    from progressd.detect.preset_loader import Presets

    terminal = os.isatty(STDERR)
    return plan(command, Presets.of_user(os.environ), adapt=adapt, name=preset, terminal=terminal)


def _may_adapt(command: Sequence[str]) -> bool:
    """Return whether a preset may change the command. Only then is it read before the start, because reading is slow.

    A preset that is invalid is reported, too.
    """
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.environ.get("HOME") or "/", ".config")
    words = {os.path.basename(word) for word in command}
    names = {word for word in words | {word.rstrip("0123456789.-") for word in words} if word}
    for directory in (os.path.join(home, "progressd", "presets"), SYSTEM, BUILT_IN_PRESETS):
        try:
            found = names.intersection(os.path.splitext(name)[0] for name in os.listdir(directory))
            for name in found:
                with open(os.path.join(directory, f"{name}.toml"), "rb") as file:
                    text = file.read()
                if directory != BUILT_IN_PRESETS or b"[[adapt]]" in text or b"same_as" in text:
                    return True
        except OSError:
            continue
    return False


def explanation(planned: RunPlan) -> str:
    """Return the answer of --explain."""
    if planned.pattern is not None:
        return "progress from: the pattern of --progress-pattern"
    if planned.keeps_streams:
        return "progress from: reports of the command; its output is not read"
    plan = planned.plan or _plan(planned.command, None, adapt=False)
    if plan.preset is None:
        return "progress from: numbers in the output, such as 42% or 3/12; there is no preset for this command"
    lines = [f"progress from: {plan.preset.name}"]
    if plan.added:
        lines.append(f"{plan.added} (not with --no-adapt)")
    if plan.needs_terminal:
        lines.append(f"{plan.preset.name} shows its progress only on a terminal")
    return "\n".join(lines)
