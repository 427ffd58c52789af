"""The total size of the files of jobs."""

import os
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from progressd.core.errors import InsufficientStorage
from progressd.files.job_files import JobFiles
from progressd.files.quota import DiskUsage
from progressd.store.sqlite import SQLiteStore
from support.samples import job_id

KIB = 1024


def on_disk(state_dir: Path) -> int:
    """Return the bytes of all files of jobs, as `find` counts them."""
    return sum(path.lstat().st_size for path in (state_dir / "jobs").rglob("*") if path.is_file())


@pytest.fixture
async def files(tmp_path: Path, store: SQLiteStore) -> JobFiles:
    files = JobFiles(tmp_path)
    await files.prepare(store)
    return files


async def receive(files: JobFiles, number: int, size: int) -> None:
    async with files.upload(job_id(number)) as upload:
        await upload.write(bytes(size))
        await upload.finish()


async def finish(files: JobFiles, number: int, size: int) -> None:
    async with files.attempt(job_id(number), 1) as work:
        (work / "output").write_bytes(bytes(size))
        await files.keep_output(job_id(number), work / "output")


class Rejected(Exception):
    """The upload is rejected."""


CHANGES = st.tuples(
    st.sampled_from(["upload", "reject", "again", "output", "stderr", "remove"]),
    st.integers(1, 3),
    st.integers(0, 100_000),
)


async def change(files: JobFiles, how: str, number: int, size: int) -> None:
    """Change the files of a job, if that is possible now."""
    there = files.input(job_id(number)).exists()
    match how:
        case "upload" if not there:
            await receive(files, number, size)
        case "reject" if not there:
            with suppress(Rejected):
                async with files.upload(job_id(number)) as upload:
                    await upload.write(bytes(size))
                    if size % 2:
                        await upload.finish()
                    raise Rejected
        case "again" if there and not files.input(job_id(number + 3)).exists():
            async with files.copied_input(job_id(number), job_id(number + 3)):
                await trio.lowlevel.checkpoint()
        case "output" if there:
            await finish(files, number, size)
        case "stderr" if there:
            await files.keep_stderr(job_id(number), bytes(size))
        case "remove":
            await files.remove([job_id(number), job_id(number + 4)])


@given(st.lists(CHANGES, max_size=12))
@settings(max_examples=30)
async def test_the_count_equals_the_bytes_on_disk(changes: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:  # fsync costs nothing there
        state_dir = Path(directory)
        with closing(SQLiteStore.open(state_dir / "store.sqlite")) as store:
            files = JobFiles(state_dir)
            await files.prepare(store)
            for how, number, size in changes:
                await change(files, how, number, size)
                assert (files.usage.bytes, files.usage.receiving) == (on_disk(state_dir), 0)
            await files.usage.count()
            assert files.usage.bytes == on_disk(state_dir)


async def test_received_bytes_count_once(files: JobFiles) -> None:
    async with files.upload(job_id(1)) as upload:
        await upload.write(bytes(KIB))
        await upload.write(bytes(KIB))
        assert (files.usage.bytes, files.usage.total) == (0, 2 * KIB)
        await upload.finish()
        assert (files.usage.bytes, files.usage.total) == (2 * KIB, 2 * KIB)


async def test_changes_during_a_count_count_once(tmp_path: Path) -> None:
    usage = DiskUsage(tmp_path / "jobs", 0, batch=1, interval=0.001)

    async def write(number: int, name: str, size: int) -> None:
        path = tmp_path / "jobs" / job_id(number) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        await usage.changing([path.parent], lambda: path.write_bytes(bytes(size)))

    for number in range(20):
        await write(number, "input", KIB)
    for round_ in range(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(usage.count)
            for number in range(20, 30):
                await write(number + 10 * round_, "input", 7)
                await write(number - 20, "stderr", number)
        assert abs(usage.bytes - on_disk(tmp_path)) < 30 * 2  # a file that was being written when its job was counted
        await usage.count()
        assert usage.bytes == on_disk(tmp_path)


async def test_a_new_count_finds_outside_changes(files: JobFiles, tmp_path: Path) -> None:
    await receive(files, 1, KIB)
    await receive(files, 2, KIB)
    files.input(job_id(1)).unlink()
    (tmp_path / "jobs" / "lost+found").mkdir(mode=0)
    (tmp_path / "jobs" / job_id(3)).write_text("a file where a directory should be")
    os.truncate(files.input(job_id(2)), 5)
    await files.usage.count()
    assert files.usage.bytes == 5


async def test_a_running_attempt_does_not_count(files: JobFiles) -> None:
    await receive(files, 1, KIB)
    async with files.attempt(job_id(1), 1) as work:
        (work / "output").write_bytes(bytes(KIB))
        await files.usage.count()
        assert files.usage.bytes == KIB


async def test_without_a_limit_nothing_is_rejected(files: JobFiles) -> None:
    files.usage.require(2**60)
    assert files.usage.full is None


async def test_bytes_above_the_limit_are_rejected(files: JobFiles) -> None:
    files.usage.max_bytes = 2 * KIB
    await receive(files, 1, KIB)
    files.usage.require(KIB)
    with pytest.raises(InsufficientStorage, match="the files of all jobs take 1 KiB of the 2 KiB allowed"):
        files.usage.require(KIB + 1)
    assert files.usage.full is None
    async with files.upload(job_id(2)) as upload:
        await upload.write(bytes(KIB))
        assert "take 2 KiB of the 2 KiB allowed" in str(files.usage.full)
        with pytest.raises(InsufficientStorage):
            await upload.write(b"1")
