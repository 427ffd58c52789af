"""SIGKILL at any instant: whatever was answered and whatever was seen is there afterwards, once."""

from pathlib import Path

import pytest
from torture.forge import Forge
from torture.rounds import torture


async def test_nothing_that_was_promised_is_lost_when_the_daemon_is_killed(
    forge: Forge, tmp_path: Path, seed: int
) -> None:
    counted = await torture(forge, tmp_path, 5, seed)
    assert counted["kills"] == 5
    assert counted["events answered"] > 0


async def test_check_backup_and_export_beside_the_daemon_harm_nothing(forge: Forge, tmp_path: Path, seed: int) -> None:
    counted = await torture(forge, tmp_path, 2, seed, kind="upkeep")
    assert counted["kills during upkeep"] == 2


@pytest.mark.torture
async def test_nothing_is_lost_in_many_rounds(forge: Forge, tmp_path: Path, rounds: int, seed: int) -> None:
    counted = await torture(forge, tmp_path, rounds, seed)
    assert counted["kills"] == rounds
