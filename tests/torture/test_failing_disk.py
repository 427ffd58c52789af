"""A failing disk, kills at any moment, and repeated uploads: each upload becomes one job or none."""

from pathlib import Path

import pytest
from torture.forge import Forge
from torture.rounds import torture

KIND = "uploads on a failing disk"


@pytest.mark.parametrize("cuts", [False, True], ids=["kills", "power cuts"])
async def test_an_upload_becomes_one_job_or_none(forge: Forge, tmp_path: Path, seed: int, cuts: bool) -> None:
    counted = await torture(forge, tmp_path, 3, seed, cuts=cuts, kind=KIND)
    assert counted["uploads refused"] + counted["uploads answered"] > 0


@pytest.mark.torture
@pytest.mark.parametrize("cuts", [False, True], ids=["kills", "power cuts"])
async def test_uploads_in_many_rounds(forge: Forge, tmp_path: Path, rounds: int, seed: int, cuts: bool) -> None:
    counted = await torture(forge, tmp_path, rounds, seed, cuts=cuts, kind=KIND)
    assert counted["refused uploads sent again"] > 0
