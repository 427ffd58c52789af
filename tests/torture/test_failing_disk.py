"""A disk that fails, a kill at any instant of it, and uploads that are sent again: each becomes one job, or nothing."""

from pathlib import Path

import pytest
from torture.forge import Forge
from torture.rounds import torture

KIND = "uploads on a failing disk"


@pytest.mark.parametrize("cuts", [False, True], ids=["kills", "power cuts"])
async def test_an_upload_on_a_failing_disk_becomes_one_job_or_nothing(
    forge: Forge, tmp_path: Path, seed: int, cuts: bool
) -> None:
    counted = await torture(forge, tmp_path, 3, seed, cuts=cuts, kind=KIND)
    assert counted["uploads refused"] + counted["uploads answered"] > 0


@pytest.mark.torture
@pytest.mark.parametrize("cuts", [False, True], ids=["kills", "power cuts"])
async def test_uploads_on_a_failing_disk_in_many_rounds(
    forge: Forge, tmp_path: Path, rounds: int, seed: int, cuts: bool
) -> None:
    counted = await torture(forge, tmp_path, rounds, seed, cuts=cuts, kind=KIND)
    assert counted["refused uploads sent again"] > 0
