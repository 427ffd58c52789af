"""The runner with real child processes: events of a pipeline, and the end of its job."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import trio
from progressd.core.errors import StoreFailed
from progressd.core.events import Registration, ReportedStatus, StartEvent, StatusEvent, SubmitEvent
from progressd.core.job import Job
from progressd.core.messages import Completed, JobStatus
from progressd.core.pipeline import Pipeline
from progressd.files.job_files import JobFiles
from progressd.runner.orphans import ProcessRecords
from progressd.runner.runner import Runner
from progressd.store.sqlite import SQLiteStore
from structlog.testing import capture_logs
from support.daemon import PATIENCE, RunningDaemon, progress, registered, running_daemon, settings_in
from support.http_client import client_of
from support.samples import NOW, job, job_id
from support.scarcity import no_descriptors_left
from support.spine import started_again
from support.submitting import COPY, PDF, cancel, ended, python, run, shell, submit
from support.waiting import alive, eventually, jumping, settled
from trio.testing import MockClock

QUEUED, PROCESSING, COMPLETED, FAILED, CANCELLED = JobStatus
REPORTS = """
import json, shutil, sys
def report(type, **data): print(json.dumps({"type": type, "data": data}))
"""
WAITS = "echo $$; while :; do sleep 60; done"  # until it is killed


def data_of(messages: Iterable[dict[str, Any]], type_: str) -> list[dict[str, Any]]:
    return [message["data"] for message in messages if message["type"] == type_]


async def messages_of(running: RunningDaemon, pipeline: str) -> list[dict[str, Any]]:
    """Run a job, and return all messages that a watcher receives."""
    async with running.watch("/ws/jobs") as watcher:
        submitted = await submit(running, pipeline)
        messages = [await watcher.receive()]
        while messages[-1]["type"] not in ("completed", "error"):
            messages.append(await watcher.receive())
    assert {message["job_id"] for message in messages} == {submitted}
    return messages


def files_of(running: RunningDaemon, job_id: str) -> set[str]:
    """Return the names in the directory of a job."""
    return {path.name for path in running.daemon.files.input(job_id).parent.iterdir()}


async def test_watchers_receive_the_events_of_a_pipeline(tmp_path: Path) -> None:
    program = REPORTS + (
        "report('progress', current_step=1, total_steps=2, step_name='Deskew')\n"
        "report('page_preview', page_number=1, preview_base64='aGk=', stage='deskew', width=3, height=2)\n"
        "report('progress', current_step=2, total_steps=2, step_name='OCR', percent=99.9)\n"
        "shutil.copy(*sys.argv[1:])\n"
        "report('completed', page_count=12, output_path='/etc/passwd')\n"
    )
    async with running_daemon(tmp_path, pipelines={"pdf": python(program, result=True)}) as daemon:
        messages = await messages_of(daemon, "pdf")
        done = await daemon.daemon.registry.get(messages[0]["job_id"])
        assert (await trio.Path(daemon.daemon.files.output(done.id)).read_bytes()) == PDF
    assert [message["type"] for message in messages if message["type"] not in ("progress", "page_preview")] == [
        "job_created",
        "status_change",
        "status_change",
        "completed",
    ]
    newest = data_of(messages, "progress")[-1]
    assert (newest["current_step"], newest["step_name"], newest["percent"]) == (2, "OCR", 99)
    [result] = data_of(messages, "completed")
    assert result["page_count"] == 12
    assert result["output_path"] == result["download_url"] == f"/api/jobs/{done.id}/download"
    assert 0 < result["elapsed_seconds"] < 60
    assert (done.status, done.page_count, done.progress.percent) == (COMPLETED, 12, 99)


async def test_invalid_lines_and_other_jobs_are_ignored(tmp_path: Path) -> None:
    other = job_id(1)
    lines = [
        {"type": "progress", "job_id": other, "data": {"current_step": 7, "total_steps": 9}},
        {"type": "progress", "job_id": "$PROGRESSD_JOB_ID", "data": {"current_step": 3, "total_steps": 9}},
        {"type": "progress", "data": {"current_step": -4, "total_steps": 9}},
        {"type": "status_change", "data": {"new_status": "cancelled"}},
        {"type": "job_created", "data": {"kind": "another"}},
        {"type": "dance"},
    ]
    program = "".join(f"echo '{json.dumps(line)}' | sed s/[$]PROGRESSD_JOB_ID/$PROGRESSD_JOB_ID/\n" for line in lines)
    program += "echo '{'; echo plain text; printf '\\377{\\000\\n'"
    async with running_daemon(tmp_path, pipelines={"pdf": shell(program)}) as daemon:
        await daemon.report(registered(other), progress(other, 1, 9))
        done = await run(daemon, "pdf")
        untouched = await daemon.daemon.registry.get(other)
    assert (done.status, done.kind, done.progress.current_step, done.output_path) == (COMPLETED, "pdf", 3, None)
    assert untouched.progress.current_step == 1


BARS = r"(?P<current>\d+)/(?P<total>\d+)(?: (?P<step>\w+))?"
PERCENT = r"(?P<percent>[\d.]+|inf|nan|lots|-5)%"


PATTERNS = [
    (BARS, "echo page 5/12 upscaling", (5, 12, "upscaling", 41)),
    (BARS, "echo page 5/12 >&2", (5, 12, "", 41)),
    (BARS, r"printf '1/12\r2/12\r3/12 three'; sleep 0", (3, 12, "three", 25)),
    (BARS, r"printf '1/12\r2/12\r3/12' >&2", (3, 12, "", 25)),
    (BARS, "echo 13/12", (13, 12, "", 100)),
    (BARS, "echo 03/012", (3, 12, "", 25)),
    (BARS, "echo 3/4; echo no numbers; echo 99999999999999999999999/1", (3, 4, "", 75)),
    (PERCENT, "echo 41.9%", (0, 0, "", 41)),
    (PERCENT, "echo 250%", (0, 0, "", 100)),
    (PERCENT, "echo 007.5%", (0, 0, "", 7)),
    (PERCENT, "echo 17%; echo inf%", (0, 0, "", 17)),
    (PERCENT, "echo 17%; echo nan%; echo lots%; echo -5%; echo 1.2.3%", (0, 0, "", 17)),
    (PERCENT, """printf '\\37717%%\\n'""", (0, 0, "", 17)),
    (BARS, """echo 1/4; echo '{"type":"progress","data":{"current_step":2,"total_steps":4}}'""", (2, 4, "", 50)),
    (None, "echo 5/12; echo 5/12 >&2", (0, 0, "", 0)),
    (None, "echo '[1/12] a'; echo '[5/12] b'", (5, 12, "", 41)),
    (None, r"printf '\r10%% done\r41%% done' >&2; sleep 0", (0, 0, "", 41)),
    (None, r"printf '\033]9;4;1;41\007'", (0, 0, "", 41)),
    ("preset none", "echo '[1/12] a'; echo '[5/12] b'", (0, 0, "", 0)),
    ("preset rsync", r"printf '\r  491,520  41%%  400.36kB/s    0:00:01  '", (491520, 0, "", 41)),
    ("preset no-such", "echo '[1/12] a'; echo '[5/12] b'", (5, 12, "", 41)),
    (None, """echo '{"type":"progress","data":{"current_step":2,"total_steps":4}}' >&2""", (0, 0, "", 0)),
]


async def test_progress_is_found_by_event_or_pattern(tmp_path: Path) -> None:
    pipelines = {
        str(number): (
            shell(program, preset=pattern.removeprefix("preset "))
            if pattern and pattern.startswith("preset ")
            else shell(program, progress_pattern=pattern)
        )
        for number, (pattern, program, _) in enumerate(PATTERNS)
    }
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon:
        jobs = [await submit(daemon, name) for name in pipelines]
        found = [(await ended(daemon, job_id)).progress for job_id in jobs]
    for (pattern, program, expected), seen in zip(PATTERNS, found, strict=True):
        assert (seen.current_step, seen.total_steps, seen.step_name, seen.percent) == expected, (pattern, program)


ERROR = """echo '{"type":"error","data":{"message":"the PDF is encrypted"}}'; """


FAILURES = [
    ("exit 3", "Pipeline error: pdf failed with exit status 3"),
    ("no-such-pv; exit", "Pipeline error: pdf failed with exit status 127: input: 1: no-such-pv: not found"),
    ("kill -TERM $$", "Pipeline error: pdf was killed by SIGTERM"),
    (
        "kill -KILL $$",
        "Pipeline error: pdf was killed by SIGKILL, perhaps because it exceeded its memory limit of 4GiB",
    ),
    ("kill -40 $$", "Pipeline error: pdf was killed by signal 40"),
    (ERROR + "exit 1", "the PDF is encrypted"),
    (ERROR + "exit 0", "the PDF is encrypted"),
    (ERROR + "kill -KILL $$", "the PDF is encrypted"),
    (ERROR + """echo '{"type":"completed"}'""", "the PDF is encrypted"),
    ("""echo '{"type":"completed"}'; exit 1""", "Pipeline error: pdf failed with exit status 1"),
]


async def test_a_failed_job_has_a_sentence(tmp_path: Path) -> None:
    pipelines = {f"pdf{number}": shell(program) for number, (program, _) in enumerate(FAILURES)}
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon, daemon.watch() as watcher:
        for name, (program, sentence) in zip(pipelines, FAILURES, strict=True):
            done = await run(daemon, name)
            sentence = sentence.replace("pdf ", f"{name} ")
            assert (done.status, done.error) == (FAILED, sentence), program
            assert (await watcher.receive_until("error"))[-1]["data"] == {"message": sentence}


async def test_a_missing_program_fails_the_job(tmp_path: Path) -> None:
    missing = Pipeline(("/no/such/program", "{input}"))
    async with running_daemon(tmp_path, pipelines={"pdf": missing, "next": shell("true")}) as daemon:
        done = await run(daemon, "pdf")
        assert (
            done.error
            == "Pipeline error: cannot start program, the program of the pipeline pdf: not installed or not executable"
        )
        assert (await run(daemon, "next")).status is COMPLETED


@pytest.mark.parametrize("program", ["true", "mkdir $1", "ln -s /etc/hostname $1"])
async def test_exit_0_without_a_result_is_a_failure(tmp_path: Path, program: str) -> None:
    pipeline = Pipeline(("sh", "-c", program, "{input}", "{output}"))
    async with running_daemon(tmp_path, pipelines={"pdf": pipeline}) as daemon:
        done = await run(daemon, "pdf")
        assert files_of(daemon, done.id) == {"input"}
    assert done.error == "Pipeline error: pdf exited with status 0, but wrote no result"


async def test_the_output_of_a_failed_attempt_is_deleted(tmp_path: Path) -> None:
    program = "import sys; open(sys.argv[2], 'wb').write(b'%PDF-1.7 half of it'); sys.exit(1)"
    async with running_daemon(tmp_path, pipelines={"pdf": python(program, result=True)}) as daemon:
        done = await run(daemon, "pdf")
        await eventually(
            lambda: {path.name for path in daemon.daemon.files.input(done.id).parent.iterdir()} == {"input"}
        )
    assert (done.status, done.output_path) == (FAILED, None)


async def test_placeholders_are_replaced_in_the_command(tmp_path: Path) -> None:
    program = "import json, os, sys; json.dump([sys.argv[1:], os.getcwd()], open(sys.argv[2], 'w'))"
    command = ("{python}", "-c", program, "--in={input}", "{output}", "{options}", "{job_id}", "{python}", "{}", "a b")
    async with running_daemon(tmp_path, pipelines={"pdf": Pipeline(command, output="pages.json")}) as daemon:
        job_id = await submit(daemon, "pdf", options={"dpi": 300, "text": 'a"b $HOME'})
        assert (await ended(daemon, job_id)).status is COMPLETED
        arguments, cwd = json.loads(daemon.daemon.files.output(job_id).read_text())
        job_dir = daemon.daemon.files.input(job_id).parent
    source, output, options, *rest = arguments
    assert source == f"--in={job_dir}/input"
    assert output == f"{job_dir}/work-1/pages.json"
    assert cwd == f"{job_dir}/work-1"
    assert json.loads(options) == {"dpi": 300, "text": 'a"b $HOME'}
    assert rest[0] == job_id
    assert rest[2:] == ["{}", "a b"]


PRIVATE = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "CREDENTIALS_DIRECTORY",
    "PROGRESSD_SERVER_PORT",
    "PROGRESSD_AUTH_TOKEN_SECRET_FILE",
]


async def test_variables_of_the_daemon_are_not_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PRIVATE:
        monkeypatch.setenv(name, "private")
    monkeypatch.setenv("COLOUR", "green")
    monkeypatch.setenv("SIZE", "small")
    program = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[2], 'w'))"
    pipeline = python(program, result=True, environment={"SIZE": "large", "PROGRESSD_JOB_ID": "no"})
    async with running_daemon(tmp_path, pipelines={"pdf": pipeline}) as daemon:
        done = await run(daemon, "pdf")
        seen = json.loads(daemon.daemon.files.output(done.id).read_text())
        socket_path = str(daemon.settings.ingest.socket)
        mark = ProcessRecords(daemon.settings.state_dir, daemon.daemon.store.id).mark
    assert "private" not in seen.values()
    assert (seen["COLOUR"], seen["SIZE"], seen["PATH"]) == ("green", "large", os.environ["PATH"])
    assert {name: value for name, value in seen.items() if name.startswith("PROGRESSD_")} == {
        "PROGRESSD_JOB_ID": done.id,
        "PROGRESSD_RUNNER": mark,
        "PROGRESSD_SOCKET": socket_path,
    }


async def test_a_pipeline_may_report_progress_through_the_socket(tmp_path: Path) -> None:
    program = (
        "import json, os, shutil, socket, sys\n"
        "with socket.socket(socket.AF_UNIX) as daemon:\n"
        "    daemon.connect(os.environ['PROGRESSD_SOCKET'])\n"
        "    step = {'type': 'progress', 'data': {'current_step': 3, 'total_steps': 4}}\n"
        "    for event in (step, {'type': 'completed'}, {'type': 'error', 'data': {'message': 'no'}}):\n"
        "        line = json.dumps({'job_id': os.environ['PROGRESSD_JOB_ID'], 'ref': 1, **event})\n"
        "        daemon.sendall(line.encode() + b'\\n')\n"
        "        assert json.loads(daemon.recv(1000))['ok'] is (event is step)\n"
        "shutil.copy(*sys.argv[1:])\n"
    )
    async with running_daemon(tmp_path, pipelines={"pdf": python(program, result=True)}) as daemon:
        done = await run(daemon, "pdf")
        assert daemon.daemon.files.output(done.id).read_bytes() == PDF
    assert (done.status, done.output_path) == (COMPLETED, f"/api/jobs/{done.id}/download")
    assert done.progress.percent == 75


NOTIFIES = """
import os, shutil, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
    daemon.connect(os.environ['NOTIFY_SOCKET'])
    for message in (b'READY=1', b'STATUS=1/4 One', b'STATUS=3/4 Three', b'STOPPING=1'):
        daemon.send(message)
    if len(sys.argv) < 3:
        daemon.send(b'ERRNO=28')
        sys.exit(1)
shutil.copy(*sys.argv[1:])
"""


async def test_a_pipeline_may_report_progress_by_sd_notify(tmp_path: Path) -> None:
    pipelines = {"pdf": python(NOTIFIES, result=True), "full": python(NOTIFIES)}
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon:
        done = await run(daemon, "pdf")
        failed = await run(daemon, "full")
    assert (done.progress.current_step, done.progress.total_steps, done.progress.step_name) == (3, 4, "Three")
    assert (failed.progress.percent, failed.error) == (75, "Pipeline error: full: No space left on device")


async def test_the_end_of_stderr_is_kept(tmp_path: Path) -> None:
    program = "import sys\nfor n in range(200_000): sys.stderr.write('warning %d\\n' % n)\nsys.exit(1)"
    async with running_daemon(tmp_path, pipelines={"pdf": python(program)}) as daemon:
        done = await run(daemon, "pdf")
        kept = daemon.daemon.files.input(done.id).with_name("stderr").read_bytes()
    assert len(kept) == 65536
    assert kept.endswith(b"\nwarning 199999\n")
    assert done.error == "Pipeline error: pdf failed with exit status 1: warning 199999"


async def first_line(path: Path) -> int:
    """Wait for the process id that a program writes to a file."""
    await eventually(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(await trio.Path(path).read_text())


async def test_a_timeout_ends_the_whole_process_tree(slow_clock: MockClock, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = f"trap '' TERM; sleep 1000 & echo $! > {pids}; while :; do wait; done"
    pipeline = shell(program, timeout=900)
    async with running_daemon(
        tmp_path, pipelines={"pdf": pipeline}, runner={"concurrency": 1, "kill_grace": 0.1}
    ) as daemon:
        submitted = await submit(daemon, "pdf")
        grandchild = await first_line(pids)
        await jumping(slow_clock, 300, lambda: submitted not in daemon.daemon.registry.unfinished)
        done = await ended(daemon, submitted)
    assert done.error == "Pipeline error: stopped after 900 s, the time limit of the pipeline pdf"
    await eventually(lambda: not alive(grandchild))


async def test_the_default_timeout_applies(tmp_path: Path) -> None:
    settings = {"concurrency": 1, "kill_grace": 0.1, "job_timeout": 0.2}
    async with running_daemon(tmp_path, pipelines={"pdf": shell(WAITS)}, runner=settings) as daemon:
        done = await run(daemon, "pdf")
    assert done.error == "Pipeline error: stopped after 0.2 s, the time limit of the pipeline pdf"


async def test_a_cancelled_job_gets_sigterm_then_sigkill(slow_clock: MockClock, tmp_path: Path) -> None:
    pids, asked = tmp_path / "pids", tmp_path / "asked"
    program = (
        f"trap 'touch {asked}' TERM\n"
        f"(trap '' TERM; while :; do sleep 60; done) & echo $! > {pids}.part; mv {pids}.part {pids}\n"
        "while :; do wait; done"
    )
    pipelines = {"pdf": shell(program), "next": shell("true")}
    async with running_daemon(tmp_path, pipelines=pipelines, runner={"concurrency": 1, "kill_grace": 300}) as daemon:
        submitted = await submit(daemon, "pdf")
        grandchild = await first_line(pids)
        assert alive(grandchild)
        assert (await cancel(daemon, submitted)).status is CANCELLED
        following = await submit(daemon, "next")  # starts when the only slot is free
        await eventually(asked.exists)
        unfinished = daemon.daemon.registry.unfinished
        await jumping(slow_clock, 300, lambda: following not in unfinished or unfinished[following].started_at)
        assert (await ended(daemon, following)).status is COMPLETED
        await eventually(lambda: not alive(grandchild))
        assert files_of(daemon, submitted) == {"input"}
        assert (await daemon.daemon.registry.get(submitted)).status is CANCELLED


@pytest.mark.parametrize(("leave", "end"), [("timeout 1000", "cancelled"), ("setsid", "too long")])
async def test_a_slot_is_free_once_the_tree_has_ended(leave: str, end: str, tmp_path: Path) -> None:
    pids, asked, go = tmp_path / "pids", tmp_path / "asked", tmp_path / "go"
    clean_up = f"touch {asked}; until [ -e {go} ]; do sleep 0.01; done; exit"
    program = f"{leave} sh -c 'trap \"{clean_up}\" TERM; echo $$ > {pids}; while :; do sleep 0.01; done' & wait"
    pipelines = {
        "pdf": shell(program, timeout=3.0 if end == "too long" else None),
        "next": shell(f"! grep 'State:.[^Z]' /proc/$(cat {pids})/status"),
    }
    runner = {"concurrency": 1, "kill_grace": PATIENCE}
    async with running_daemon(tmp_path, pipelines=pipelines, runner=runner) as daemon:
        submitted = await submit(daemon, "pdf")
        await first_line(pids)
        if end == "cancelled":
            await cancel(daemon, submitted)
        await eventually(asked.exists)
        following = await submit(daemon, "next")
        await settled()
        assert (await daemon.daemon.registry.get(following)).status is QUEUED
        go.touch()
        assert (await ended(daemon, following)).status is COMPLETED
        assert (await daemon.daemon.registry.get(submitted)).status is (CANCELLED if end == "cancelled" else FAILED)


async def test_a_job_may_be_deleted_while_its_program_ends(tmp_path: Path) -> None:
    go = tmp_path / "go"
    program = (
        f"trap 'echo asked >&2; until [ -e {go} ]; do sleep 0.01; done; exit 1' TERM; echo $$; while :; do wait; done"
    )
    pipelines = {"pdf": shell(f"echo > {tmp_path}/begun; {program}"), "next": shell("true")}
    async with running_daemon(
        tmp_path, pipelines=pipelines, runner={"concurrency": 1, "kill_grace": PATIENCE}
    ) as daemon:
        submitted = await submit(daemon, "pdf")
        await eventually((tmp_path / "begun").exists)
        await cancel(daemon, submitted)
        async with client_of(daemon) as client:
            answer = await client.delete(f"/api/jobs/{submitted}?purge=true")
        assert answer.status_code == 200
        go.touch()
        assert (await run(daemon, "next")).status is COMPLETED
        assert not daemon.daemon.files.input(submitted).parent.exists()


async def test_a_job_cancelled_in_the_queue_never_starts(tmp_path: Path) -> None:
    ran, go = tmp_path / "ran", tmp_path / "go"
    pipelines = {"first": shell(f"until [ -e {go} ]; do sleep 0.01; done"), "second": shell(f"touch {ran}")}
    async with running_daemon(tmp_path, pipelines=pipelines, runner={"concurrency": 1}) as daemon:
        first, second = await submit(daemon, "first"), await submit(daemon, "second")
        await cancel(daemon, second)
        go.touch()
        await ended(daemon, first)
        assert (await run(daemon, "first")).status is COMPLETED  # after the turn of the second one
    assert not ran.exists()


async def test_jobs_start_in_order_within_the_slots(tmp_path: Path) -> None:
    begin, wait = "touch {0}/begun-$PROGRESSD_JOB_ID", "until [ -e {0}/go-$PROGRESSD_JOB_ID ]; do sleep 0.01; done"
    program = f"{begin}; {wait}".format(tmp_path)
    async with running_daemon(tmp_path, pipelines={"pdf": shell(program)}, runner={"concurrency": 2}) as daemon:
        jobs = [await submit(daemon, "pdf") for _ in range(5)]

        def begun() -> set[str]:
            return {path.name.removeprefix("begun-") for path in tmp_path.glob("begun-*")}

        for number, one in enumerate(jobs):
            expected = set(jobs[: number + 2])
            await eventually(lambda expected=expected: begun() >= expected)  # type: ignore[misc]
            assert begun() == expected
            statuses = [unfinished.status for unfinished in daemon.daemon.registry.unfinished.values()]
            assert statuses == ([PROCESSING] * min(2, 5 - number) + [QUEUED] * max(0, 3 - number))
            await trio.Path(tmp_path / f"go-{one}").touch()
            await ended(daemon, one)


async def test_a_job_without_its_files_fails_alone(tmp_path: Path) -> None:
    pipelines = {
        "pdf": shell('d=$(dirname "$0"); rm -rf "$d"; touch "$d"; echo bad >&2; exit 1'),
        "next": shell("true"),
    }
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon:
        done = await run(daemon, "pdf")
        assert done.error == "Pipeline error: the daemon failed to run pdf (see the daemon's log)"
        assert (await run(daemon, "next")).status is COMPLETED


@pytest.mark.parametrize("cancelled", [False, True])
async def test_without_descriptors_a_pipeline_starts_later(tmp_path: Path, cancelled: bool) -> None:
    settings = settings_in(tmp_path, pipelines={"pdf": shell("true")}, runner={"concurrency": 1})
    async with started_again(tmp_path / "progressd.db") as spine, trio.open_nursery() as nursery:
        files = JobFiles(tmp_path)
        await files.prepare(spine.store)
        runner = Runner(settings, spine.registry, spine.ingest, files, retry_interval=0.02)
        nursery.start_soon(runner.run)
        await eventually(lambda: runner._slots.value == 0)  # it waits for a job
        (tmp_path / "jobs" / job_id(1)).mkdir(parents=True)
        with capture_logs() as logs, trio.fail_after(PATIENCE):
            with no_descriptors_left():
                await spine.submit(SubmitEvent(job_id(1), Registration("pdf"), "pdf"))
                retries = "cannot start pipeline, retrying"
                await eventually(lambda: sum(entry["event"] == retries for entry in logs) > 2)
                assert spine.registry.unfinished[job_id(1)].status is PROCESSING
                if cancelled:
                    await spine.submit(StatusEvent(job_id(1), ReportedStatus(CANCELLED)))
            await spine.registry.wait_finished(job_id(1))
        assert (await spine.registry.get(job_id(1))).status is (CANCELLED if cancelled else COMPLETED)
        await eventually(lambda: not list((tmp_path / "jobs" / job_id(1)).glob("work*")))
        nursery.cancel_scope.cancel()


async def test_without_descriptors_the_clean_up_is_retried(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, pipelines={"pdf": shell("true")})
    async with started_again(tmp_path / "progressd.db") as spine, trio.open_nursery() as nursery:
        files = JobFiles(tmp_path)
        await files.prepare(spine.store)
        await spine.submit(SubmitEvent(job_id(1), Registration("pdf"), "pdf"), StartEvent(job_id(1)))
        runner = Runner(settings, spine.registry, spine.ingest, files, retry_interval=0.02)
        with capture_logs() as logs, trio.fail_after(PATIENCE):
            with no_descriptors_left():
                nursery.start_soon(runner.run)
                await eventually(lambda: sum("cannot clean up" in entry["event"] for entry in logs) > 2)
            await spine.registry.wait_finished(job_id(1))
        assert (await spine.registry.get(job_id(1))).status is COMPLETED
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (
            'echo done > "$1"; mount --bind "$d" "$d"; mount -o remount,bind,ro "$d"',
            "Pipeline error: the daemon cannot store the result of pdf: Read-only file system",
        ),
        (
            'mount -t tmpfs -o size=4k progressd-test "$d"; head -c 5000 /dev/zero > "$d/x"; echo No room >&2; exit 3',
            "Pipeline error: pdf failed with exit status 3: No room",
        ),
    ],
    ids=["result", "stderr"],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting is not permitted")
async def test_a_full_or_read_only_disk_is_reported(tmp_path: Path, program: str, error: str) -> None:
    pdf = Pipeline(("sh", "-c", 'd=$(dirname "$0"); ' + program, "{input}", "{output}"))
    async with running_daemon(tmp_path, pipelines={"pdf": pdf}) as daemon:
        failed = await run(daemon, "pdf")
        await trio.run_process(["umount", daemon.daemon.files.input(failed.id).parent])
        assert failed.error == error


class FlakyStore(SQLiteStore):
    """Reject the end of a job a few times, as on a full disk."""

    refusals = 3

    async def commit(self, jobs: Iterable[Job], changes: Any, *others: Any) -> None:
        if self.refusals and any(isinstance(change.message, Completed) for change in changes):
            self.refusals -= 1
            raise StoreFailed("the disk is full", retry_after=0)
        await super().commit(jobs, changes, *others)


async def test_a_jobs_end_is_retried_until_stored(tmp_path: Path) -> None:
    pipelines = {"pdf": python(COPY, result=True)}
    async with running_daemon(tmp_path, open_store=FlakyStore.open, pipelines=pipelines) as daemon:
        done = await run(daemon, "pdf")
        assert done.status is COMPLETED
        assert daemon.daemon.files.output(done.id).read_bytes() == PDF
        store = daemon.daemon.store
        assert isinstance(store, FlakyStore)
        assert store.refusals == 0


async def left_behind(directory: Path, *jobs: Job) -> None:
    """Make the state directory of a daemon that was killed while these jobs ran."""
    state_dir = directory / "state"
    for one in jobs:
        (state_dir / "jobs" / one.id).mkdir(parents=True)
        (state_dir / "jobs" / one.id / "input").write_bytes(PDF)
    store = SQLiteStore.open(state_dir / "progressd.db")
    await store.reserve(1000)
    await store.commit(jobs, [])
    store.close()


def running_job(number: int, **fields: Any) -> Job:
    return job(number, PROCESSING, **{"pipeline": "pdf", "started_at": NOW, **fields})


async def test_after_a_crash_jobs_run_again_oldest_first(tmp_path: Path) -> None:
    log = tmp_path / "log"
    await left_behind(tmp_path, running_job(2), running_job(1, attempt=2), job(3, pipeline="pdf"))
    half_written = tmp_path / "state" / "jobs" / job_id(1) / "work-2" / "output.pdf"
    half_written.parent.mkdir()
    half_written.write_bytes(b"%PDF-1.7 half of it")
    pipeline = shell(f"echo $PROGRESSD_JOB_ID >> {log}")
    async with running_daemon(tmp_path, pipelines={"pdf": pipeline}, runner={"concurrency": 1}) as daemon:
        ends = [await ended(daemon, job_id(number)) for number in (1, 2, 3)]
    assert [end.status for end in ends] == [COMPLETED] * 3
    assert [end.attempt for end in ends] == [3, 2, 1]
    assert log.read_text().split() == [job_id(1), job_id(2), job_id(3)]


async def test_a_job_fails_after_too_many_crashes(tmp_path: Path) -> None:
    await left_behind(tmp_path, running_job(1, attempt=2), running_job(2, attempt=1))
    pipelines = {"pdf": shell("true")}
    async with running_daemon(tmp_path, pipelines=pipelines, runner={"concurrency": 1, "max_attempts": 2}) as daemon:
        given_up, again = await ended(daemon, job_id(1)), await ended(daemon, job_id(2))
    assert (given_up.status, given_up.error, given_up.attempt) == (FAILED, "interrupted", 2)
    assert (again.status, again.attempt) == (COMPLETED, 2)


@contextmanager
def left_running(mark: str, job: str) -> Iterator[IO[bytes]]:
    """Run an orphan of a killed daemon that ignores SIGTERM; give its output."""
    program = "import signal\nsignal.signal(15, lambda *_: print('no'))\nprint('here')\nwhile True: signal.pause()"
    marks = {"PROGRESSD_RUNNER": mark, "PROGRESSD_JOB_ID": job}
    with subprocess.Popen([sys.executable, "-uc", program], stdout=subprocess.PIPE, env=marks) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.stdout
        finally:
            process.kill()


async def test_a_job_may_be_deleted_before_its_orphans_end(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, runner={"kill_grace": PATIENCE})
    async with started_again(tmp_path / "progressd.db") as spine, trio.open_nursery() as nursery:
        files = JobFiles(tmp_path)
        await files.prepare(spine.store)
        await spine.submit(SubmitEvent(job_id(1), Registration("pdf"), "pdf"), StartEvent(job_id(1)))
        runner = Runner(settings, spine.registry, spine.ingest, files)
        with left_running(ProcessRecords(tmp_path, spine.store.id).mark, job_id(1)) as output:
            nursery.start_soon(runner.run)
            with trio.fail_after(PATIENCE):
                await trio.to_thread.run_sync(output.readline)
            cancelled = await spine.ingest.submit_one(StatusEvent(job_id(1), ReportedStatus(CANCELLED)))
            await spine.ingest.delete(cancelled)
        await eventually(lambda: runner._slots.value < settings.runner.concurrency)
        nursery.cancel_scope.cancel()


async def test_after_a_crash_jobs_of_producers_continue(tmp_path: Path) -> None:
    await left_behind(tmp_path, running_job(1, pipeline=None), job(2))
    async with running_daemon(tmp_path) as daemon:
        unfinished = daemon.daemon.registry.unfinished
        assert [(one.status, one.attempt) for one in unfinished.values()] == [(PROCESSING, 1), (QUEUED, 1)]
        [answer] = await daemon.report(progress(job_id(1), 3))
        assert answer["ok"]


async def test_a_job_without_a_pipeline_fails(tmp_path: Path) -> None:
    await left_behind(tmp_path, running_job(1, pipeline="gone"), job(2, pipeline="gone"))
    async with running_daemon(tmp_path) as daemon:
        for number in (1, 2):
            done = await ended(daemon, job_id(number))
            assert done.error == "Pipeline error: the pipeline gone is no longer configured"


async def test_a_stop_waits_for_running_jobs(tmp_path: Path) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"
    pipelines = {"pdf": shell(f"touch {ready}; until [ -e {go} ]; do sleep 0.01; done")}
    async with running_daemon(tmp_path, pipelines=pipelines, runner={"concurrency": 1}) as daemon:
        first, second = await submit(daemon, "pdf"), await submit(daemon, "pdf")
        await eventually(ready.exists)
        daemon.kill()
        await eventually(lambda: not daemon.daemon.services.ready)
        go.touch()
        with trio.fail_after(PATIENCE):
            await daemon.stopped.wait()
        jobs = daemon.daemon.registry
        assert (await jobs.get(first)).status is COMPLETED
        assert (await jobs.get(second)).status is QUEUED


@pytest.mark.parametrize("how", ["in time", "at once", "second signal"])
async def test_a_stop_without_waiting_requeues_jobs(tmp_path: Path, how: str) -> None:
    pids = tmp_path / "pids"
    pipelines = {"pdf": shell(f"echo $$ > {pids}.part; mv {pids}.part {pids}; sleep 1000")}
    shutdown = {"in time": {"drain_timeout": 0.2}, "at once": {"wait_for_jobs": False}, "second signal": {}}[how]
    async with running_daemon(tmp_path, pipelines=pipelines, shutdown=shutdown) as daemon:
        submitted = await submit(daemon, "pdf")
        child = await first_line(pids)
        daemon.kill()
        if how == "second signal":
            daemon.kill(signal.SIGINT)
        await daemon.stop()
        assert not alive(child)
        again = await daemon.daemon.registry.get(submitted)
        assert (again.status, again.attempt) == (QUEUED, 1)
        assert files_of(daemon, submitted) == {"input"}
    async with running_daemon(tmp_path, pipelines={"pdf": shell("true")}) as daemon:
        done = await ended(daemon, submitted)
    assert (done.status, done.attempt) == (COMPLETED, 1)
