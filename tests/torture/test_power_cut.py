"""A power cut at any instant: as a kill, and what was not synced may be lost, or torn."""

from pathlib import Path

import pytest
from progressd.system.log import leaves
from torture.forge import Forge
from torture.rounds import torture


async def test_nothing_that_was_promised_is_lost_in_a_power_cut(forge: Forge, tmp_path: Path, seed: int) -> None:
    counted = await torture(forge, tmp_path, 3, seed, cuts=True)
    assert counted["events answered"] > 0


@pytest.mark.parametrize(("config", "ignoring"), [('[store]\nsynchronous = "NORMAL"', ""), ("", "Y")])
async def test_a_sync_that_was_left_out_would_be_noticed(
    forge: Forge, tmp_path: Path, config: str, ignoring: str
) -> None:
    with pytest.raises((AssertionError, ExceptionGroup)) as broken:
        await torture(forge, tmp_path, 10, 1, cuts=True, config=config, ignoring=ignoring)
    assert any(isinstance(leaf, AssertionError) for leaf in leaves(broken.value))


@pytest.mark.torture
async def test_nothing_is_lost_in_many_power_cuts(forge: Forge, tmp_path: Path, rounds: int, seed: int) -> None:
    await torture(forge, tmp_path, rounds, seed, cuts=True)
