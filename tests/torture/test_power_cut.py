"""A power cut at any instant: as a kill, and what was not synced may be lost, or torn."""

from pathlib import Path

import pytest
from progressd.log import leaves
from torture.rounds import torture


async def test_nothing_that_was_promised_is_lost_in_a_power_cut(tmp_path: Path, seed: int, shim: Path) -> None:
    counted = await torture(tmp_path, 4, seed, shim=shim)
    assert counted["events answered"] > 0


@pytest.mark.parametrize(("config", "ignoring"), [('[store]\nsynchronous = "NORMAL"', ""), ("", "S"), ("", "Y")])
async def test_a_sync_that_was_left_out_would_be_noticed(
    tmp_path: Path, shim: Path, config: str, ignoring: str
) -> None:
    with pytest.raises((AssertionError, ExceptionGroup)) as broken:
        await torture(tmp_path, 10, 1, shim=shim, config=config, ignoring=ignoring)
    assert any(isinstance(leaf, AssertionError) for leaf in leaves(broken.value))


@pytest.mark.torture
async def test_nothing_is_lost_in_many_power_cuts(tmp_path: Path, rounds: int, seed: int, shim: Path) -> None:
    await torture(tmp_path, rounds, seed, shim=shim)
