"""Resumable uploads on disk: what is reported is there, whatever the daemon was doing when it was killed."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from progressd.core.errors import InsufficientStorage
from progressd.files import resumable
from progressd.files.quota import DiskUsage, FreeSpaceGuard
from progressd.files.resumable import ResumableUpload, ResumableUploads, UploadInfo
from support.samples import job_id

ID = job_id(1)
DATA = bytes(range(200))


class Killed(Exception):
    """The block of a writer ends, as if the daemon was killed."""


def info(length: int = len(DATA), id_: str = ID) -> UploadInfo:
    return UploadInfo(
        id=id_, length=length, metadata="", filename="a.pdf", pipeline="pdf", options={}, labels={}, owner="me"
    )


async def opened(state_dir: Path, max_bytes: int = 0) -> tuple[ResumableUploads, DiskUsage]:
    usage = DiskUsage(state_dir / "jobs", max_bytes)
    uploads = ResumableUploads(state_dir, FreeSpaceGuard(state_dir, 0), usage, 3600)
    await uploads.prepare()
    return uploads, usage


def found(uploads: ResumableUploads, id_: str = ID) -> ResumableUpload:
    upload = uploads.find(id_)
    assert upload is not None
    return upload


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 90), st.sampled_from(["ends", "fails", "killed"]), st.booleans()), max_size=6))
async def test_the_reported_bytes_survive_everything(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, bool]]
) -> None:
    state_dir = tmp_path_factory.mktemp("state")
    uploads, usage = await opened(state_dir)
    upload = await uploads.create(info())
    expected = 0  # bytes that have to be there
    for size, end, unverified in steps:
        piece = DATA[upload.offset : upload.offset + size]
        copied = state_dir / "copy"
        try:
            async with uploads.writing(upload, unverified=unverified) as writer:
                await writer.write(piece)
                if end == "killed":
                    shutil.copytree(state_dir / "partial", copied)
                if end != "ends":
                    raise Killed
                writer.verified = True
        except Killed:
            pass
        if end == "killed":
            shutil.rmtree(state_dir / "partial")
            copied.rename(state_dir / "partial")
            uploads, usage = await opened(state_dir)
            upload = found(uploads)
        expected += 0 if unverified and end != "ends" else len(piece)
        assert upload.offset == usage.receiving == expected
        assert upload.path.read_bytes() == DATA[:expected]
    shutil.rmtree(state_dir)


async def test_an_interrupted_creation_or_deletion_leaves_nothing(tmp_path: Path) -> None:
    uploads, _ = await opened(tmp_path)
    await uploads.create(info())
    for name in (f"{ID}.json", ID):
        uploads, _ = await opened(tmp_path)
        if name == ID:
            await uploads.create(info())
            (tmp_path / "partial" / f"{ID}.json").write_bytes(b"{")  # unreadable
        else:
            (tmp_path / "partial" / name).unlink()
        uploads, usage = await opened(tmp_path)
        assert (uploads.all(), usage.receiving, list((tmp_path / "partial").iterdir())) == ([], 0, [])


@pytest.mark.parametrize(("mark", "left"), [("", 9), ("1", 9), ("4\n", 4)])
async def test_only_a_whole_mark_cuts_the_bytes(mark: str, left: int, tmp_path: Path) -> None:
    uploads, _ = await opened(tmp_path)
    upload = await uploads.create(info())
    async with uploads.writing(upload) as writer:
        await writer.write(DATA[:9])
    (tmp_path / "partial" / f"{ID}.unverified").write_text(mark)  # as after a kill
    uploads, usage = await opened(tmp_path)
    assert (found(uploads).offset, usage.receiving) == (left, left)
    async with uploads.writing(found(uploads), unverified=True) as writer:
        await writer.write(DATA[left:])
        writer.verified = True
    assert found(uploads).path.read_bytes() == DATA


async def test_a_complete_upload_is_known_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, usage = await opened(tmp_path)
    upload = await uploads.create(info())
    async with uploads.writing(upload) as writer:
        await writer.write(DATA)
    uploads, usage = await opened(tmp_path)
    assert (found(uploads).whole, found(uploads).done) == (True, False)
    uploads.release(found(uploads))
    await uploads.finish(found(uploads))
    uploads, usage = await opened(tmp_path)
    assert (found(uploads).whole, found(uploads).done, usage.receiving) == (True, True, 0)
    monkeypatch.setattr(resumable, "MAX_DONE", 1)
    await uploads.create(newer := info(id_=job_id(2)))
    async with uploads.writing(newest := found(uploads, newer.id)) as writer:
        await writer.write(DATA)
    uploads.release(newest)
    await uploads.finish(newest)
    await uploads.expire()
    assert uploads.all() == [newest]


async def test_the_quota_limits_what_is_written(tmp_path: Path) -> None:
    uploads, usage = await opened(tmp_path, 100)
    with pytest.raises(InsufficientStorage):
        await uploads.create(info())
    upload = await uploads.create(info(90))
    usage.add(job_id(2), 50)
    async with uploads.writing(upload) as writer:
        await writer.write(DATA[:40])
        with pytest.raises(InsufficientStorage):
            await writer.write(DATA[40:80])
    assert (upload.offset, usage.receiving) == (40, 40)


async def test_an_upload_does_not_expire_while_bytes_arrive(tmp_path: Path) -> None:
    uploads, usage = await opened(tmp_path)
    upload = await uploads.create(info())
    async with uploads.writing(upload) as writer:
        upload.changed_at -= uploads.lifetime  # the request lasts longer than the lifetime
        await writer.write(DATA[:9])
        await uploads.expire()
    assert (uploads.all(), upload.path.read_bytes(), usage.receiving) == ([upload], DATA[:9], 9)


async def test_an_upload_that_cannot_be_read_at_a_start_is_not_deleted(tmp_path: Path) -> None:
    uploads, _ = await opened(tmp_path)
    upload = await uploads.create(info())
    async with uploads.writing(upload) as writer:
        await writer.write(DATA[:9])
    description = tmp_path / "partial" / f"{ID}.json"
    saved = description.rename(tmp_path / "saved")
    description.symlink_to(description)  # reading it fails, as on a disk with errors
    uploads, usage = await opened(tmp_path)
    assert (uploads.all(), usage.receiving) == ([], 0)
    saved.rename(description)
    uploads, usage = await opened(tmp_path)
    assert (found(uploads).offset, usage.receiving) == (9, 9)
