"""How many bytes the files of jobs take: what is counted is what is on the disk, whatever happens to them."""

import os
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from progressd.core.errors import InsufficientStorage
from progressd.files import quota as module
from progressd.files.job_files import JobFiles
from progressd.store.sqlite import SQLiteStore
from support.samples import job_id

KIB = 1024


def on_disk(state_dir: Path) -> int:
    """Bytes of all files of jobs, as `find` would count them."""
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


class Refused(Exception):
    """Somebody does not want the upload after all."""


CHANGES = st.tuples(
    st.sampled_from(["upload", "refuse", "again", "output", "stderr", "remove"]),
    st.integers(1, 3),
    st.integers(0, 100_000),
)


async def change(files: JobFiles, how: str, number: int, size: int) -> None:
    """One step in the life of a job, as far as its files go, unless it does not come into question."""
    there = files.input(job_id(number)).exists()
    match how:
        case "upload" if not there:
            await receive(files, number, size)
        case "refuse" if not there:
            with suppress(Refused):
                async with files.upload(job_id(number)) as upload:
                    await upload.write(bytes(size))
                    if size % 2:
                        await upload.finish()
                    raise Refused
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
@settings(max_examples=60)
async def test_what_is_counted_is_what_is_on_the_disk(changes: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:  # where fsync costs nothing
        state_dir = Path(directory)
        with closing(SQLiteStore.open(state_dir / "store.sqlite")) as store:
            files = JobFiles(state_dir)
            await files.prepare(store)
            for how, number, size in changes:
                await change(files, how, number, size)
                assert (files.stored.bytes, files.stored.receiving) == (on_disk(state_dir), 0)
            await files.stored.count()
            assert files.stored.bytes == on_disk(state_dir)


async def test_what_is_received_counts_as_it_comes_and_once(files: JobFiles) -> None:
    async with files.upload(job_id(1)) as upload:
        await upload.write(bytes(KIB))
        await upload.write(bytes(KIB))
        assert (files.stored.bytes, files.stored.total) == (0, 2 * KIB)
        await upload.finish()
        assert (files.stored.bytes, files.stored.total) == (2 * KIB, 2 * KIB)


async def test_what_comes_while_all_is_counted_anew_counts_once_but_for_what_is_just_being_written(
    files: JobFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP", 1)
    monkeypatch.setattr(module, "PAUSE", 0.001)
    for number in range(20):
        await receive(files, number, KIB)
    for round_ in range(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(files.stored.count)
            for number in range(20, 30):
                await receive(files, number + 10 * round_, 7)
                await files.keep_stderr(job_id(number - 20), bytes(number))
        assert abs(files.stored.bytes - on_disk(tmp_path)) < 30 * 2
        await files.stored.count()
        assert files.stored.bytes == on_disk(tmp_path)


async def test_counting_anew_mends_what_went_past(files: JobFiles, tmp_path: Path) -> None:
    await receive(files, 1, KIB)
    await receive(files, 2, KIB)
    files.input(job_id(1)).unlink()
    (tmp_path / "jobs" / "lost+found").mkdir(mode=0)
    (tmp_path / "jobs" / job_id(3)).write_text("a file where a directory should be")
    os.truncate(files.input(job_id(2)), 5)
    await files.stored.count()
    assert files.stored.bytes == 5


async def test_an_attempt_under_way_does_not_count(files: JobFiles) -> None:
    await receive(files, 1, KIB)
    async with files.attempt(job_id(1), 1) as work:
        (work / "output").write_bytes(bytes(KIB))
        await files.stored.count()
        assert files.stored.bytes == KIB


async def test_without_a_limit_anything_may_come_in(files: JobFiles) -> None:
    files.stored.require(2**60)
    assert files.stored.full is None


async def test_what_would_exceed_the_limit_is_refused_in_a_sentence_and_what_just_fits_is_not(files: JobFiles) -> None:
    files.stored.most = 2 * KIB
    await receive(files, 1, KIB)
    files.stored.require(KIB)
    with pytest.raises(InsufficientStorage, match="those of jobs take 1 KiB of the 2 KiB allowed"):
        files.stored.require(KIB + 1)
    assert files.stored.full is None
    async with files.upload(job_id(2)) as upload:
        await upload.write(bytes(KIB))
        assert "take 2 KiB of the 2 KiB allowed" in str(files.stored.full)
        with pytest.raises(InsufficientStorage):
            await upload.write(b"1")
