"""`progressd presets`."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from progressd.cli.main import main
from progressd.detect.preset_loader import BUILT_IN_PRESETS
from support.cli import run

ROOT = Path(__file__).parent.parent.parent
TRANSCRIPTS = ROOT / "tests" / "transcripts"


def test_the_list_has_every_preset(tmp_path: Path) -> None:
    directory = tmp_path / "progressd" / "presets"
    directory.mkdir(parents=True)
    (directory / "my-tool.toml").write_text("about = 'my own'\n[[rules]]\nregex = '(?P<percent>\\d+)%'")
    head, *rows = run("presets", XDG_CONFIG_HOME=str(tmp_path)).output.splitlines()
    assert head.split() == ["NAME", "FINDS", "ADDS", "FOR"]
    names = [row.split()[0] for row in rows]
    assert {"rsync", "ffmpeg", "my-tool"} <= set(names)
    assert "youtube-dl" not in names
    assert len(names) >= 30
    (rsync,) = (row for row in rows if row.startswith("rsync "))
    assert "  percent, rate, time left  --info=progress2 --no-inc-recursive  " in rsync


def test_the_documented_list_is_the_real_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "presets.md").read_text()
    listed = page.partition("<!-- progressd presets -->\n```text\n")[2].partition("```\n")[0]
    assert listed == run("presets", XDG_CONFIG_HOME=str(tmp_path)).output


def test_a_preset_is_shown_as_its_file() -> None:
    shown = run("presets", "show", "youtube-dl").output
    path = BUILT_IN_PRESETS / "yt-dlp.toml"
    assert shown == f"# {path}\n{path.read_text()}"
    result = run("presets", "show", "nonsense")
    assert (result.exit_code, result.output) == (
        1,
        "Error: there is no preset 'nonsense' (progressd presets lists them)\n",
    )


def test_a_transcript_is_searched_frame_by_frame() -> None:
    shown = run("presets", "test", TRANSCRIPTS / "rsync-3.5.0.typescript", "--as", "rsync").output
    assert " 50.0%  7500000 " in shown or " 53.0%  8000000 " in shown
    assert "rate " in shown
    assert "left " in shown
    assert shown.endswith("progress from: rsync\n")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (b"\r10% a\r20% a", "(the unfinished line)"),
        (b"\r10% a\r20% a", "progress from: percentages"),
        (b"\x1b[1mtext\x1b[0m\x00\xff\n", "| text"),
        (b"", "progress from: no source was found"),
    ],
)
def test_standard_input_is_searched(output: bytes, said: str) -> None:
    result = CliRunner().invoke(main, ["presets", "test", "-"], input=output)
    assert result.exit_code == 0
    assert said in result.output


def test_an_unknown_preset_is_rejected() -> None:
    result = run("presets", "test", TRANSCRIPTS / "rsync-3.5.0.typescript", "--as", "rsnc")
    assert result.exit_code == 1
    assert "there is no preset 'rsnc'; did you mean rsync?" in result.output
