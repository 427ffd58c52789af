"""A power cut at any moment: like a kill, but unsynced data may be lost or torn."""

from pathlib import Path

import pytest
from progressd.system.log import leaves
from torture.forge import Forge
from torture.rounds import torture


async def test_power_cuts_lose_nothing_acknowledged(forge: Forge, tmp_path: Path, seed: int) -> None:
    counted = await torture(forge, tmp_path, 3, seed, cuts=True)
    assert counted["events answered"] > 0


@pytest.mark.parametrize(("config", "ignoring"), [('[store]\nsynchronous = "NORMAL"', ""), ("", "Y")])
async def test_a_missing_sync_is_detected(forge: Forge, tmp_path: Path, config: str, ignoring: str) -> None:
    with pytest.raises((AssertionError, ExceptionGroup)) as broken:
        await torture(forge, tmp_path, 10, 1, cuts=True, config=config, ignoring=ignoring)
    assert any(isinstance(leaf, AssertionError) for leaf in leaves(broken.value))


@pytest.mark.torture
async def test_many_rounds_of_power_cuts(forge: Forge, tmp_path: Path, rounds: int, seed: int) -> None:
    await torture(forge, tmp_path, rounds, seed, cuts=True)
