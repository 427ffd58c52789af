"""`progressd presets`: list, print and test presets."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from progressd.cli.language import for_reader, later, t

if TYPE_CHECKING:
    from progressd.core.events import ReportedProgress
    from progressd.detect.detector import Detector
    from progressd.detect.preset import Preset
    from progressd.detect.preset_loader import Presets

STREAMS: Final = {"O": 1, "E": 2, "P": 3}  # in the timing of a transcript
QUIET: Final = 0.2  # seconds without output after which an unfinished line is searched
HEAD: Final = (later("NAME"), later("FINDS"), later("ADDS"), later("FOR"))
WIDTH: Final = 100  # characters of a line that are printed


@click.group(invoke_without_command=True)
@click.pass_context
def presets(ctx: click.Context) -> None:
    """List the programs whose progress is known.

    A preset says how a program writes its progress, and which options to add to its command. progressd run and
    pipelines use the preset that has the name of the program. Your own presets are files NAME.toml in
    ~/.config/progressd/presets, and for all users and the daemon in /etc/progressd/presets.

    \b
    Examples:
      progressd presets
      progressd presets show rsync
      script -O typescript -c 'my-tool'; progressd presets test typescript --as my-tool
    """
    if ctx.invoked_subcommand is None:
        from progressd.cli.text import columns

        with for_reader(sys.stdout):
            for line in columns([tuple(map(t, HEAD)), *_rows(_presets())]):
                click.echo(line)


@presets.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the file of a preset. Copy it to change it."""
    path = _presets().path(name)
    if path is None:
        raise click.ClickException(f"there is no preset {name!r} (progressd presets lists them)")
    click.echo(f"# {path}\n{path.read_text(encoding='utf-8')}", nl=False)


@presets.command()
@click.argument("transcript", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--as", "name", metavar="NAME", help="The preset to test.  [default: none, only general patterns]")
def test(transcript: Path, name: str | None) -> None:
    """Print the progress that is found in each line or redraw of recorded output; - reads standard input.

    A transcript is the output of a program, recorded for example with script(1). It must contain the carriage returns.
    """
    from progressd.detect.detector import Detector
    from progressd.detect.plan import plan

    detector = Detector(plan([name or "-"], _presets(), adapt=False, name=name))
    with click.open_file(str(transcript), "rb") as file:
        output = file.read()
    for stream, pause, chunk in _chunks(transcript, output):
        if pause >= QUIET:
            _print_unfinished(detector)
        for frame, found in detector.frames(stream, chunk):
            _print(frame.text if frame.osc else frame.plain, found, detector)
    _print_unfinished(detector)
    click.echo(f"progress from: {detector.source or 'no source was found'}")


def _presets() -> "Presets":
    import os

    from progressd.detect.preset_loader import Presets

    return Presets.of_user(os.environ)


def _rows(known: "Presets") -> Iterator[tuple[str, str, str, str]]:
    for name in known:
        preset = known.find(name)
        assert preset is not None
        adds = preset.adapt[0].shown().removeprefix("adds ") if preset.adapt else ""
        if preset.needs_terminal and not preset.adapt:
            adds = t("(needs a terminal)")
        yield name, t(", ").join(_finds(preset)), adds, t(preset.about)


def _finds(preset: "Preset") -> Iterator[str]:
    """Yield what a preset finds."""
    from progressd.detect.rules import Rules

    rules = Rules(preset)
    groups = {name for rule in rules.rules for name in rule.pattern.names}
    for line in rules.json:
        groups |= {name for name in ("current", "total", "percent", "fraction", "rate", "eta") if getattr(line, name)}
    totals = {"total", "duration", "items"} & groups or preset.total
    yield t("percent") if {"percent", "fraction"} & groups or totals else t("count")
    if "rate" in groups:
        yield t("rate")
    if "eta" in groups:
        yield t("time left")


def _chunks(transcript: Path, output: bytes) -> Iterator[tuple[int, float, bytes]]:
    """Yield the stream of each chunk, the pause before it in seconds, and the chunk.

    The file NAME.timing next to NAME.typescript has this in the advanced format of script(1).
    """
    timing = transcript.with_suffix(".timing")
    if transcript.suffix == ".typescript" and timing.exists():
        at = 0
        for line in timing.read_text().splitlines():
            match line.split():
                case [stream, pause, length] if stream in STREAMS:
                    yield STREAMS[stream], float(pause), output[at : at + int(length)]
                    at += int(length)
        return
    for at in range(0, len(output), 1024):
        yield STREAMS["O"], 0, output[at : at + 1024]


def _print_unfinished(detector: "Detector") -> None:
    for stream in STREAMS.values():
        for found in detector.quiet(stream):
            _print(b"(the unfinished line)", found, detector)


def _print(text: bytes, found: "ReportedProgress | None", detector: "Detector") -> None:
    shown = text.decode(errors="replace").strip()
    shown = "".join(one if one.isprintable() else " " for one in shown)[:WIDTH]
    if found is None:
        click.echo(f"{'':34}| {shown}")
        return
    percent = "" if found.percent is None else f"{found.percent:.1f}%"
    counts = f"{found.current_step}/{found.total_steps}" if found.total_steps else str(found.current_step or "")
    click.echo(f"{percent:>6}  {counts:<24}  | {shown}")
    known = [f"step {found.step_name}"] if found.step_name else []
    known += [f"phase {found.phase}"] if found.phase else []
    known += [f"unit {found.unit}"] if found.unit else []
    known += [f"rate {detector.found.rate:g}"] if detector.found.rate else []
    known += [f"left {detector.found.eta:g} s"] if detector.found.eta else []
    if known:
        click.echo(f"{'':34}  {', '.join(known)}")
