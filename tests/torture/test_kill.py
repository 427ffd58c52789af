"""SIGKILL, power cuts and failing disks at any moment: everything acknowledged or delivered exists afterwards, once."""

from collections import Counter
from pathlib import Path

import pytest
from progressd.core.errors import leaves
from torture.fork_server import ForkServer
from torture.rounds import torture

UPLOADS = "uploads on a failing disk"
CUTS = pytest.mark.parametrize("cuts", [False, True], ids=["kills", "power cuts"])


@CUTS
async def test_nothing_acknowledged_is_lost(fork_server: ForkServer, tmp_path: Path, seed: int, cuts: bool) -> None:
    counted = await torture(fork_server, tmp_path, 2 if cuts else 3, seed, cuts=cuts)
    assert counted["events answered"] > 0


async def test_check_backup_and_export_are_harmless(fork_server: ForkServer, tmp_path: Path, seed: int) -> None:
    counted = await torture(fork_server, tmp_path, 2, seed, kind="upkeep")
    assert counted["kills during upkeep"] == 2


@CUTS
async def test_an_upload_becomes_one_job_or_none(
    fork_server: ForkServer, tmp_path: Path, seed: int, cuts: bool
) -> None:
    counted = Counter[str]()
    for more in range(10):  # on a busy machine, the first kills may come before an answer
        counted += await torture(fork_server, tmp_path, 2, seed + more, cuts=cuts, kind=UPLOADS)
        if counted["uploads rejected"] + counted["uploads answered"] > 0:
            return
    pytest.fail("no upload was answered")


@pytest.mark.parametrize(("config", "ignoring"), [('[store]\nsynchronous = "NORMAL"', ""), ("", "Y")])
async def test_a_missing_sync_is_detected(fork_server: ForkServer, tmp_path: Path, config: str, ignoring: str) -> None:
    with pytest.raises((AssertionError, ExceptionGroup)) as broken:
        await torture(fork_server, tmp_path, 10, 1, cuts=True, config=config, ignoring=ignoring)
    assert any(isinstance(leaf, AssertionError) for leaf in leaves(broken.value))


@pytest.mark.torture
@CUTS
@pytest.mark.parametrize("kind", ["", UPLOADS], ids=["all", "uploads"])
async def test_many_rounds(
    fork_server: ForkServer, tmp_path: Path, rounds: int, seed: int, cuts: bool, kind: str
) -> None:
    counted = await torture(fork_server, tmp_path, rounds, seed, cuts=cuts, kind=kind)
    assert counted["kills"] == rounds
    assert counted["rejected uploads sent again"] > 0 or not kind
