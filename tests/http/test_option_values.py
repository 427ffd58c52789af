"""The values that a command prints for an option."""

from pathlib import Path

import pytest
from progressd.config.settings import BUILT_IN_PIPELINES
from progressd.core.pipeline import Option
from progressd.http.option_values import values_of


def option(*command: str) -> Option:
    return Option("string", values_command=command)


async def test_each_line_is_a_value() -> None:
    assert await values_of(option("printf", "eng\njpn\n")) == ["eng", "jpn"]
    assert await values_of(option("{python}", "-c", "print(7)")) == ["7"]
    assert await values_of(Option("string")) == []


@pytest.mark.parametrize("command", [("false",), ("/no/such/program",), ("sh", "-c", "exec sleep 60")])
async def test_a_failing_command_has_no_values(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("progressd.http.option_values.TIMEOUT", 0.1)
    assert await values_of(option(*command)) == []


async def test_the_command_runs_once_a_minute(tmp_path: Path) -> None:
    counted = option("sh", "-c", f"echo x >>{tmp_path}/runs; cat {tmp_path}/runs")
    assert [await values_of(counted) for _ in range(3)] == [["x"]] * 3


async def test_the_pdf_pipeline_knows_the_installed_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("progressd.http.option_values.TIMEOUT", 60)  # a loaded machine
    values = await values_of(BUILT_IN_PIPELINES["pdf"].options["language"])
    assert "eng" in values
    assert "osd" not in values


def test_only_text_has_a_command() -> None:
    with pytest.raises(ValueError, match="values_command is only for string options"):
        Option("integer", values_command=("true",))
