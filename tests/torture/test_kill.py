"""SIGKILL at any moment: everything acknowledged or delivered exists afterwards, once."""

from pathlib import Path

import pytest
from torture.forge import Forge
from torture.rounds import torture


async def test_kills_lose_nothing_acknowledged(forge: Forge, tmp_path: Path, seed: int) -> None:
    counted = await torture(forge, tmp_path, 5, seed)
    assert counted["kills"] == 5
    assert counted["events answered"] > 0


async def test_check_backup_and_export_are_harmless(forge: Forge, tmp_path: Path, seed: int) -> None:
    counted = await torture(forge, tmp_path, 2, seed, kind="upkeep")
    assert counted["kills during upkeep"] == 2


@pytest.mark.torture
async def test_many_rounds_of_kills(forge: Forge, tmp_path: Path, rounds: int, seed: int) -> None:
    counted = await torture(forge, tmp_path, rounds, seed)
    assert counted["kills"] == rounds
