"""SIGKILL at any instant: whatever was answered and whatever was seen is there afterwards, once."""

from pathlib import Path

import pytest
from torture.rounds import torture


async def test_nothing_that_was_promised_is_lost_when_the_daemon_is_killed(tmp_path: Path, seed: int) -> None:
    counted = await torture(tmp_path, 6, seed)
    assert counted["kills"] == 6
    assert counted["events answered"] > 0


@pytest.mark.torture
async def test_nothing_is_lost_in_many_rounds(tmp_path: Path, rounds: int, seed: int) -> None:
    counted = await torture(tmp_path, rounds, seed)
    assert counted["kills"] == rounds
