"""Programs that print a short list."""

import sys
from pathlib import Path

from progressd.system.printed_lines import PrintedLines


async def test_lines_are_read_once_a_minute(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = ["sh", "-c", f"echo x >> {runs}; printf 'eng\\n\\njpn'"]
    lines = PrintedLines()
    assert [await lines.of(command) for _ in range(2)] == [["eng", "jpn"]] * 2
    assert runs.read_text() == "x\n"


async def test_a_program_that_fails_prints_nothing() -> None:
    lines = PrintedLines()
    assert await lines.of(["no-such-program"]) == []
    assert await lines.of([sys.executable, "-c", "print('eng'); raise SystemExit(1)"]) == []
