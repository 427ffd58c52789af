"""Programs that print a short list."""

import sys
from pathlib import Path

import pytest
from progressd.config.settings import BUILT_IN_PIPELINES
from progressd.core.pipeline import Option
from progressd.system import printed_lines
from progressd.system.printed_lines import PrintedLines


async def test_lines_are_read_once_a_minute(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = ["sh", "-c", f"echo x >> {runs}; printf 'eng\\n\\njpn'"]
    lines = PrintedLines()
    assert [await lines.of(command) for _ in range(2)] == [["eng", "jpn"]] * 2
    assert runs.read_text() == "x\n"


async def test_a_program_that_fails_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = PrintedLines()
    assert await lines.of(["no-such-program"]) == []
    assert await lines.of([sys.executable, "-c", "print('eng'); raise SystemExit(1)"]) == []
    monkeypatch.setattr(printed_lines, "TIMEOUT", 0.1)
    assert await lines.of(["sh", "-c", "echo eng; exec sleep 60"]) == []


async def test_the_pdf_pipeline_knows_the_installed_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed_lines, "TIMEOUT", 60)  # a loaded machine
    command = BUILT_IN_PIPELINES["pdf"].options["language"].values_command
    values = await PrintedLines().of([part.replace("{python}", sys.executable) for part in command])
    assert "eng" in values
    assert "osd" not in values


def test_only_text_options_have_a_command() -> None:
    with pytest.raises(ValueError, match="values_command is only for string options"):
        Option("integer", values_command=("true",))
