"""Presets in pipelines: what they add to a command, the total that they know, and the position in the input."""

from pathlib import Path

import trio
from progressd.core.messages import JobStatus
from progressd.core.pipeline import Pipeline
from progressd.files.log_file import read
from support.daemon import running_daemon
from support.submitting import ended, submit
from support.waiting import eventually

MEBIBYTE = 1024 * 1024


def pipeline(*command: str) -> Pipeline:
    return Pipeline(command, ("*/*",), "result")


async def test_dd_gets_the_input_size_as_total(tmp_path: Path) -> None:
    copies = {"copy": pipeline("dd", "if={input}", "of={output}", "bs=64k")}
    async with running_daemon(tmp_path, pipelines=copies) as daemon:
        done = await ended(daemon, await submit(daemon, "copy", bytes(MEBIBYTE)))
    assert done.status is JobStatus.COMPLETED
    assert (done.progress.current_step, done.progress.total_steps) == (MEBIBYTE, MEBIBYTE)


async def test_a_preset_may_use_a_descriptor(tmp_path: Path) -> None:
    (tmp_path / "big").touch()
    with (tmp_path / "big").open("r+b") as file:
        file.truncate(50 * MEBIBYTE)
    packs = {"pack": pipeline("tar", "cf", "{output}", "-C", str(tmp_path), "big")}
    async with running_daemon(tmp_path / "state", pipelines=packs) as daemon:
        done = await ended(daemon, await submit(daemon, "pack"))
    assert done.status is JobStatus.COMPLETED
    assert done.progress.current_step == 2 * 2000 * 10240  # the second checkpoint
    assert done.progress.total_steps > 50 * MEBIBYTE


async def test_a_presets_own_frames_are_not_kept(tmp_path: Path) -> None:
    """Git shows them only with --progress, which the preset adds."""
    make = "git init -q && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m a"
    await trio.run_process(["sh", "-c", make], cwd=tmp_path)
    clones = {"clone": pipeline("git", "clone", f"file://{tmp_path}", "copy")}
    async with running_daemon(tmp_path / "state", pipelines=clones) as daemon:
        done = await ended(daemon, await submit(daemon, "clone"))
        assert done.status is JobStatus.COMPLETED
        kept = daemon.daemon.files.input(done.id).parent / "stderr"
        assert kept.read_text() == "Cloning into 'copy'...\n"
        log = daemon.daemon.files.logs.directory(done.id)
        await eventually(lambda: b"".join([one.text for one in read(log, 0)]) == kept.read_bytes())


async def test_the_position_in_the_input_is_an_estimate(tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f'exec <"$0"; head -c {MEBIBYTE} >"$1"; until [ -e {go} ]; do sleep 0.01; done'
    reads = {"read": pipeline("sh", "-c", script, "{input}", "{output}")}
    async with running_daemon(tmp_path / "state", pipelines=reads) as daemon:
        job_id = await submit(daemon, "read", bytes(4 * MEBIBYTE))
        await eventually(lambda: daemon.daemon.registry.unfinished[job_id].progress.percent == 25)
        assert daemon.daemon.registry.unfinished[job_id].progress.step_name == "Reading the input (estimate)"
        go.touch()
        assert (await ended(daemon, job_id)).status is JobStatus.COMPLETED
