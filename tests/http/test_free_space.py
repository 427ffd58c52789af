"""`limits.min_free_bytes`: the free space on the disk that uploads leave."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from progressd.core.pipeline import Pipeline
from support.daemon import running_daemon
from support.http_client import FORM_TYPE, client_of, file_part, form, post_pieces
from support.scarcity import SmallDisk, small_disk
from support.submitting import PDF
from support.waiting import eventually

MIB = 2**20
IDLE = {"idle": Pipeline(("sleep", "60"), accept=("*/*",))}
AT_ONCE = {"wait_for_jobs": False}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.parametrize(("path", "sizes", "told"), [("convert", [20], True), ("batch", [6, 6, 6], False)])
async def test_a_file_that_would_fill_the_disk_returns_507(
    disk: SmallDisk, path: str, sizes: list[int], told: bool
) -> None:
    given: Any = {"min_free_bytes": 8 * MIB, "max_upload_bytes": 30 * MIB if path == "convert" else 8 * MIB}
    names = {"convert": "file", "batch": "files"}
    async with (
        running_daemon(disk.path, limits=given, pipelines=IDLE, shutdown=AT_ONCE) as daemon,
        client_of(daemon) as client,
    ):
        body = form(*[file_part(bytes(size * MIB), name=names[path]) for size in sizes])
        before, sent = shutil.disk_usage(disk.path).free, list[int]()

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(body), 65536):
                sent.append(shutil.disk_usage(disk.path).free)
                yield body[start : start + 65536]

        length = {"Content-Length": str(len(body))} if told else {}
        rejected = await post_pieces(client, f"/api/{path}?pipeline=idle", pieces(), {**FORM_TYPE, **length})
        assert (rejected.status_code, list(rejected.json())) == (507, ["error", "code"])
        assert min(sent) > (before - MIB if told else 8 * MIB - 65536)
        await eventually(lambda: shutil.disk_usage(disk.path).free > before - MIB)


async def test_concurrent_uploads_leave_the_free_space(disk: SmallDisk) -> None:
    given: Any = {"min_free_bytes": 8 * MIB}
    async with (
        running_daemon(disk.path, limits=given, pipelines=IDLE, shutdown=AT_ONCE) as daemon,
        client_of(daemon) as client,
    ):
        body = form(file_part(PDF.ljust(6 * MIB)))
        free, answers = list[int](), Counter[int]()

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(body), 65536):
                free.append(shutil.disk_usage(disk.path).free)
                yield body[start : start + 65536]

        async def submit() -> None:
            headers = {**FORM_TYPE, "Content-Length": str(len(body))}
            answers[(await post_pieces(client, "/api/convert?pipeline=idle", pieces(), headers)).status_code] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(submit)
        assert answers.keys() <= {202, 507}
        assert answers[507] >= 2
        assert min(free) > 8 * MIB - MIB
