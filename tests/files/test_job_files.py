"""The files of jobs, and what a crash between two steps leaves."""

import errno
import os
import resource
import subprocess
import sys
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from progressd.core.errors import Conflict, InsufficientStorage, SettingsError, StoreFailed, Unavailable
from progressd.core.messages import JobStatus
from progressd.files.job_files import JobFiles
from progressd.files.state_dir import own_state_dir
from progressd.store.sqlite import SQLiteStore
from structlog.testing import capture_logs
from support.samples import ID, NOW, job, job_id
from support.scarcity import small_disk
from support.waiting import PATIENCE

PDF = b"%PDF-1.7 and so on"


@pytest.fixture
async def files(tmp_path: Path, store: SQLiteStore) -> JobFiles:
    files = JobFiles(tmp_path)
    await files.prepare(store)
    return files


def tree(top: Path) -> set[str]:
    """Return every file and directory below, except the store's and the empty directory of resumable uploads."""
    others = ("store.sqlite", "partial")
    return {str(path.relative_to(top)) for path in top.rglob("*") if not path.name.startswith(others)}


async def receive(files: JobFiles, number: int = 1, content: bytes = PDF) -> None:
    """Upload a whole input."""
    async with files.upload(job_id(number)) as upload:
        await upload.write(content)
        await upload.finish()


async def test_an_input_exists_once_it_is_complete(files: JobFiles, tmp_path: Path) -> None:
    async with files.upload(ID) as upload:
        await upload.write(PDF[:5])
        await upload.write(PDF[5:])
        assert not files.input(ID).exists()
        await upload.finish()
        assert files.input(ID).read_bytes() == PDF
    assert upload.head == PDF
    assert tree(tmp_path) == {"uploads", "jobs", f"jobs/{ID}", f"jobs/{ID}/input"}


async def test_the_head_of_an_upload_has_1024_bytes(files: JobFiles) -> None:
    async with files.upload(ID) as upload:
        for size in (1, 1000, 500, 500):
            await upload.write(bytes(size))
        assert len(upload.head) == 1024


class Rejected(Exception):
    """The upload is rejected."""


@pytest.mark.parametrize("whole", [False, True])
async def test_a_rejected_upload_leaves_no_files(files: JobFiles, tmp_path: Path, whole: bool) -> None:

    async def reject() -> None:
        async with files.upload(ID) as upload:
            await upload.write(PDF)
            if whole:
                await upload.finish()
            raise Rejected

    with pytest.raises(Rejected):
        await reject()
    assert tree(tmp_path) == {"uploads", "jobs"}


async def fail(files: JobFiles, content: bytes, error: Exception, *, whole: bool = True) -> None:
    """Upload content, and fail with the error."""
    with suppress(type(error)):
        async with files.upload(ID) as upload:
            await upload.write(content)
            if whole:
                await upload.finish()
            raise error


def undecided() -> StoreFailed:
    """Return the error of a commit that may or may not be stored."""
    error = StoreFailed("the disk fails")
    error.undecided = True
    return error


@pytest.mark.parametrize("there", [False, True])
async def test_undecided_uploads_are_settled_by_the_store(
    files: JobFiles, tmp_path: Path, store: SQLiteStore, there: bool
) -> None:
    await fail(files, PDF, undecided())
    assert files.input(ID).read_bytes() == PDF
    with pytest.raises(Unavailable, match="not known yet whether this job is stored"):
        await receive(files)
    if there:
        await store.commit([job()], [])
    await files.prepare(store)
    assert tree(tmp_path) == {"uploads", "jobs"} | ({f"jobs/{ID}", f"jobs/{ID}/input"} if there else set())


async def test_an_undecided_retry_keeps_its_input(files: JobFiles, tmp_path: Path, store: SQLiteStore) -> None:
    await receive(files)
    with pytest.raises(StoreFailed):
        async with files.copied_input(ID, job_id(2)):
            raise undecided()
    await store.commit([job(), job(2)], [])
    await files.prepare(store)
    assert files.input(job_id(2)).read_bytes() == PDF
    assert tree(tmp_path / "uploads") == set()


async def test_an_upload_cannot_replace_files_of_a_job(files: JobFiles, tmp_path: Path) -> None:
    await receive(files)
    with pytest.raises(Conflict, match="already has files"):
        await receive(files, content=b"%PDF of somebody else")
    assert files.input(ID).read_bytes() == PDF
    assert tree(tmp_path) == {"uploads", "jobs", f"jobs/{ID}", f"jobs/{ID}/input"}


async def test_a_cancelled_upload_leaves_no_files(files: JobFiles, tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        async with files.upload(ID) as upload:
            await upload.write(PDF)
            await upload.finish()
            scope.cancel()
            await trio.sleep_forever()
    assert tree(tmp_path) == {"uploads", "jobs"}


async def test_a_stored_jobs_input_survives_a_crash(files: JobFiles, tmp_path: Path, store: SQLiteStore) -> None:
    await receive(files)
    await store.commit([job()], [])
    (tmp_path / "uploads" / ID).hardlink_to(files.input(ID))  # as after a crash before the last step
    await files.prepare(store)
    assert tree(tmp_path) == {"uploads", "jobs", f"jobs/{ID}", f"jobs/{ID}/input"}
    assert files.input(ID).read_bytes() == PDF


@pytest.mark.parametrize("linked", [False, True], ids=["half received", "whole, but not in the store"])
async def test_after_a_crash_uploads_without_a_job_are_deleted(
    files: JobFiles, tmp_path: Path, store: SQLiteStore, linked: bool
) -> None:
    await receive(files, 2)
    await store.commit([job(2)], [])
    (tmp_path / "uploads" / ID).write_bytes(PDF)
    if linked:
        files.input(ID).parent.mkdir()
        files.input(ID).hardlink_to(tmp_path / "uploads" / ID)
    await files.prepare(store)
    assert tree(tmp_path) == {"uploads", "jobs", f"jobs/{job_id(2)}", f"jobs/{job_id(2)}/input"}


async def test_a_retry_links_the_input(files: JobFiles, tmp_path: Path) -> None:
    await receive(files)
    async with files.copied_input(ID, job_id(2)):
        assert files.input(job_id(2)).samefile(files.input(ID))
    await files.remove([ID])
    assert files.input(job_id(2)).read_bytes() == PDF
    assert tree(tmp_path / "uploads") == set()


async def test_a_retry_without_an_input_is_rejected(files: JobFiles, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match=ID):
        async with files.copied_input(ID, job_id(2)):
            raise AssertionError("there is nothing to copy")
    assert tree(tmp_path) == {"uploads", "jobs"}


async def test_a_failed_retry_leaves_no_files(files: JobFiles, tmp_path: Path) -> None:
    await receive(files)
    with pytest.raises(Rejected):
        async with files.copied_input(ID, job_id(2)):
            raise Rejected
    assert tree(tmp_path) == {"uploads", "jobs", f"jobs/{ID}", f"jobs/{ID}/input"}


async def test_an_attempt_has_an_empty_directory(files: JobFiles, tmp_path: Path) -> None:
    await receive(files)
    for number in (1, 2):  # left by a killed daemon
        (tmp_path / "jobs" / ID / f"work-{number}" / "pages").mkdir(parents=True)
    async with files.attempt(ID, 2) as work:
        assert tree(tmp_path / "jobs" / ID) == {"input", "work-2"}
        (work / "pages").mkdir()
        (work / "pages" / "1.png").write_bytes(b"...")
    assert tree(tmp_path / "jobs") == {ID, f"{ID}/input"}


async def test_a_cancelled_attempt_leaves_no_directory(files: JobFiles, tmp_path: Path) -> None:
    await receive(files)
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        async with files.attempt(ID, 1) as work:
            (work / "output.pdf").write_bytes(PDF)
            scope.cancel()
            await trio.sleep_forever()
    assert tree(tmp_path / "jobs") == {ID, f"{ID}/input"}


async def test_a_job_deleted_during_an_attempt_leaves_no_files(files: JobFiles, tmp_path: Path) -> None:
    await receive(files)
    async with files.attempt(ID, 1) as work:
        await files.remove([ID])
        work.mkdir(parents=True)  # as if the program had written during the removal
        (work / "half").touch()
    assert tree(tmp_path) == {"uploads", "jobs"}


async def test_a_result_survives_its_attempt(files: JobFiles) -> None:
    async with files.attempt(ID, 1) as work:
        (work / "output.pdf").write_bytes(PDF)
        await files.keep_output(ID, work / "output.pdf")
    assert files.output(ID).read_bytes() == PDF


async def test_a_missing_result_is_rejected(files: JobFiles) -> None:
    async with files.attempt(ID, 1) as work:
        with pytest.raises(FileNotFoundError):
            await files.keep_output(ID, work / "output.pdf")
    assert not files.output(ID).exists()


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
async def test_only_a_regular_file_is_a_result(files: JobFiles, tmp_path: Path, kind: str) -> None:
    await receive(files)
    async with files.attempt(ID, 1) as work:
        match kind:
            case "directory":
                (work / "output.pdf").mkdir()
            case "link":
                (work / "output.pdf").symlink_to("/etc/hostname")
            case "pipe":
                os.mkfifo(work / "output.pdf")
        with trio.fail_after(PATIENCE), pytest.raises(FileNotFoundError):
            await files.keep_output(ID, work / "output.pdf")
    assert tree(tmp_path / "jobs") == {ID, f"{ID}/input"}


async def test_the_last_stderr_is_kept(files: JobFiles, tmp_path: Path) -> None:
    await receive(files)
    await files.keep_stderr(ID, b"a long complaint\n")
    await files.keep_stderr(ID, b"short\n")
    assert (tmp_path / "jobs" / ID / "stderr").read_bytes() == b"short\n"


async def test_remove_deletes_only_files_of_the_job(files: JobFiles, tmp_path: Path) -> None:
    for number in (1, 2):
        await receive(files, number)
        files.output(job_id(number)).write_bytes(PDF)
    await files.remove([ID, job_id(3)])
    assert tree(tmp_path / "jobs") == {job_id(2), f"{job_id(2)}/input", f"{job_id(2)}/output"}


async def test_old_directories_are_listed_in_steps(files: JobFiles, tmp_path: Path) -> None:
    for number in range(1, 6):
        await receive(files, number)
        if number != 3:
            os.utime(tmp_path / "jobs" / job_id(number), (1000, 1000))
    for stranger in ("lost+found", "a b", os.fsdecode(b"\xff")):
        (tmp_path / "jobs" / stranger).mkdir()
        os.utime(tmp_path / "jobs" / stranger, (1000, 1000))
    async with aclosing(files.older_than(datetime.now(UTC) - timedelta(hours=1), 2)) as steps:
        found = [step async for step in steps]
    assert [len(step) for step in found] == [2, 2]
    assert sorted(name for step in found for name in step) == [job_id(number) for number in (1, 2, 4, 5)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_leaves_no_files(
    files: JobFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InsufficientStorage, match="no space left"):
        await receive(files)
    assert tree(tmp_path) == {"uploads", "jobs"}


async def test_a_file_above_rlimit_fsize_leaves_no_files(files: JobFiles, tmp_path: Path) -> None:
    least = 2**20  # more than anything else that this process writes
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (least, limits[1]))
    try:
        with pytest.raises(InsufficientStorage, match="exceeds the file size limit of the daemon"):
            await receive(files, content=bytes(2 * least))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(tmp_path) == {"uploads", "jobs"}


def test_other_users_cannot_read_the_state_directory(tmp_path: Path) -> None:
    state_dir = tmp_path / "some" / "where"
    with own_state_dir(state_dir):
        assert state_dir.stat().st_mode & 0o777 == 0o700
        assert (state_dir / "lock").stat().st_mode & 0o777 == 0o600


def test_one_daemon_locks_the_state_directory(tmp_path: Path) -> None:
    other = (
        "import pathlib, sys; from progressd.files.state_dir import own_state_dir\n"
        "with own_state_dir(pathlib.Path(sys.argv[1])): pass"
    )
    with own_state_dir(tmp_path):
        with pytest.raises(SettingsError, match="another progressd uses the state directory"), own_state_dir(tmp_path):
            raise AssertionError("two daemons in one directory")
        rejected = subprocess.run(
            [sys.executable, "-c", other, tmp_path], capture_output=True, text=True, timeout=PATIENCE
        )
        assert "another progressd uses the state directory" in rejected.stderr
    with own_state_dir(tmp_path):
        pass  # unlocked again


def test_an_impossible_state_directory_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rejected = pytest.raises(SettingsError, match=r"cannot use the state directory .*: Not a directory")
    with rejected, own_state_dir(tmp_path / "file" / "state"):
        raise AssertionError("there is no such directory")


@pytest.mark.parametrize("name", ["uploads", "jobs"])
async def test_a_file_instead_of_a_directory_is_rejected(tmp_path: Path, store: SQLiteStore, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(SettingsError, match=f"^cannot use {tmp_path}/{name}: it is not a directory$"):
        await JobFiles(tmp_path).prepare(store)


async def test_files_of_others_are_left_alone(tmp_path: Path, store: SQLiteStore) -> None:
    others = {f"{top}/{name}" for top in ("uploads", "jobs") for name in ("lost+found", ID)}
    for other in others:
        (tmp_path / other).mkdir(parents=True)
    (tmp_path / "uploads/notes.txt").touch()
    (tmp_path / "jobs/notes").mkdir()
    await JobFiles(tmp_path).prepare(store)
    assert tree(tmp_path) == {"uploads", "jobs", "uploads/notes.txt", "jobs/notes", *others}


class Killed(BaseException):
    """The process is killed."""


@pytest.mark.parametrize("deleted", [True, False])
async def test_the_next_daemon_settles_an_interrupted_deletion(
    files: JobFiles, tmp_path: Path, store: SQLiteStore, deleted: bool
) -> None:
    await store.commit([job(1, JobStatus.COMPLETED, completed_at=NOW, offset=2)], [])
    await receive(files)
    with suppress(Killed):
        async with files.deletion(ID):
            if deleted:
                assert await store.delete([ID]) == [ID]
            raise Killed
    assert files.input(ID).exists()
    await JobFiles(tmp_path).prepare(store)
    assert tree(tmp_path) == {"uploads", "jobs"} | (set() if deleted else {f"jobs/{ID}", f"jobs/{ID}/input"})


async def test_settle_spares_uploads_in_progress(files: JobFiles, tmp_path: Path, store: SQLiteStore) -> None:
    await fail(files, PDF, undecided())
    async with files.upload(job_id(2)) as upload:
        await upload.write(PDF)
        await files.settle(store)
        assert tree(tmp_path) == {"uploads", "jobs", f"uploads/{job_id(2)}"}
        await upload.finish()
        await files.remove([job_id(2)])
        await files.remove_unknown([job_id(2)], store)
        assert files.input(job_id(2)).read_bytes() == PDF


async def test_the_next_daemon_retries_a_failed_deletion(files: JobFiles, tmp_path: Path, store: SQLiteStore) -> None:
    for number in range(1, 4):
        await receive(files, number)
    busy = files.input(job_id(2)).parent / "busy"
    with small_disk(busy), capture_logs() as logs:
        async with files.deletion(ID):
            pass
        await files.remove([job_id(number) for number in (2, 3)])
    [warning] = logs
    assert (warning["log_level"], warning["job_id"], warning["jobs"]) == ("warning", job_id(2), 1)
    assert warning["error"].startswith(f"[Errno {errno.EBUSY}] {os.strerror(errno.EBUSY)}: ")
    left = {"uploads", "jobs", f"jobs/{job_id(2)}"}
    assert left < tree(tmp_path)
    with pytest.raises(Conflict):
        await receive(files, 2)
    await JobFiles(tmp_path).prepare(store)
    assert tree(tmp_path) == {"uploads", "jobs"}
