"""What a process of a pipeline may take of the machine, and the sentence when it takes more. Real children."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from progressd.core.job import Job
from progressd.core.pipeline import Pipeline
from progressd.producers.ndjson import NumberedLine
from progressd.runner.process import EXEC_LIMITED, ChildProcess
from progressd.runner.rlimits import ResourceLimits
from structlog.testing import capture_logs
from support.daemon import running_daemon
from support.submitting import COPY, python, run, shell

MIB = 1 << 20
LIMITS = ResourceLimits(memory=300 * MIB, cpu=2, file=10 * MIB, open_files=100)
TOLD = [
    (-signal.SIGXCPU, b"", "used more than 2s of processor time, its limit"),
    (128 + signal.SIGXCPU, b"", "used more than 2s of processor time, its limit"),
    (-signal.SIGXFSZ, b"", "wrote a file larger than 10MiB, its limit"),
    (-signal.SIGABRT, b"", "was ended by SIGABRT, perhaps because it needs more memory than its limit of 300MiB"),
    (
        128 + signal.SIGKILL,
        b"",
        "failed with exit status 137, perhaps because it needs more memory than its limit of 300MiB",
    ),
    (1, b"MemoryError\n", "failed with exit status 1, perhaps because it needs more memory than its limit of 300MiB"),
    (
        3,
        b"JavaScript heap out of memory",
        "failed with exit status 3, perhaps because it needs more memory than its limit of 300MiB",
    ),
    (1, b"no such page", "failed with exit status 1: no such page"),
    (-signal.SIGSEGV, b"", "was ended by SIGSEGV"),
]


@pytest.mark.parametrize(("status", "stderr", "sentence"), TOLD)
def test_an_end_is_told_by_the_limit_that_brought_it(status: int, stderr: bytes, sentence: str) -> None:
    assert LIMITS.told(status, stderr) == sentence


async def outcome(directory: Path, pipeline: Pipeline, **runner: object) -> Job:
    """What becomes of a job; and that the daemon goes on."""
    pipelines = {"pdf": pipeline, "next": shell("true")}
    async with running_daemon(directory, pipelines=pipelines, runner={"concurrency": 1, **runner}) as daemon:
        done = await run(daemon, "pdf")
        assert (await run(daemon, "next")).error is None
    return done


async def test_a_job_that_wants_more_memory_than_it_may_have_fails_with_that_sentence(tmp_path: Path) -> None:
    done = await outcome(tmp_path, python("x = bytearray(400 << 20)", max_memory_bytes=200 * MIB))
    assert (
        done.error
        == "Pipeline error: pdf failed with exit status 1, perhaps because it needs more memory than its limit of "
        "200MiB"
    )


async def test_what_a_job_starts_may_have_no_more_than_itself(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(400 << 20)'], check=True)"
    done = await outcome(tmp_path, python(program), max_memory_bytes=200 * MIB)
    assert "more memory than its limit" in (done.error or "")


async def test_the_limits_hold_before_a_job_does_anything(tmp_path: Path) -> None:
    seen = "$(ulimit -Sf) $(ulimit -Hf) $(cat /proc/$$/oom_score_adj)"
    done = await outcome(tmp_path, shell(f'test "{seen}" = "2048 2048 500"', max_file_bytes=MIB))
    assert done.error is None


async def test_a_job_that_computes_for_too_long_fails_with_that_sentence(tmp_path: Path) -> None:
    done = await outcome(tmp_path, shell("while :; do :; done", max_cpu_seconds=1))
    assert done.error == "Pipeline error: pdf used more than 1s of processor time, its limit"


async def test_a_job_that_writes_too_large_a_file_fails_with_that_sentence(tmp_path: Path) -> None:
    done = await outcome(tmp_path, shell("head -c 2000000 /dev/zero > file", max_file_bytes=MIB))
    assert done.error == "Pipeline error: pdf wrote a file larger than 1MiB, its limit"


async def test_the_limits_of_the_runner_hold_where_a_pipeline_has_none_of_its_own(tmp_path: Path) -> None:
    program = (
        "import json, sys\nfrom resource import *\n"
        "assert getrlimit(RLIMIT_CORE) == (0, 0)\n"
        "assert open('/proc/self/oom_score_adj').read() == '500\\n'\n"
        "kinds = RLIMIT_DATA, RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_NOFILE\n"
        "json.dump([getrlimit(kind) for kind in kinds], open(sys.argv[2], 'w'))"
    )
    runner = {"concurrency": 1, "max_memory_bytes": 1 << 30, "max_cpu_seconds": 60.4, "max_file_bytes": MIB}
    pipeline = python(program, result=True, max_open_files=50)
    async with running_daemon(tmp_path, pipelines={"pdf": pipeline}, runner=runner) as daemon:
        done = await run(daemon, "pdf")
        assert done.error is None
        seen = daemon.daemon.files.output(done.id).read_text()
    assert seen == f"[[{1 << 30}, {1 << 30}], [60, 65], [{MIB}, {MIB}], [50, 50]]"


async def test_the_daemon_itself_keeps_what_it_has(tmp_path: Path) -> None:
    kinds = (resource.RLIMIT_DATA, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
    before = [resource.getrlimit(kind) for kind in kinds]
    done = await outcome(tmp_path, python(COPY, result=True), max_memory_bytes=100 * MIB, max_open_files=20)
    assert done.error is None
    assert [resource.getrlimit(kind) for kind in kinds] == before


def test_a_job_gets_no_more_than_the_daemon_may_have_itself() -> None:
    shown = "print(*resource.getrlimit(resource.RLIMIT_NOFILE), open('/proc/self/oom_score_adj').read())"
    program = (
        "import resource, sys, trio\nfrom pathlib import Path\n"
        "from progressd.runner.process import ChildProcess as Child\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (80, 90))\n"
        "Path('/proc/self/oom_score_adj').write_text('700')\n"
        "async def seen(lines):\n    for _, line in lines: print(line.decode())\n"
        "async def main():\n"
        f"    command = [sys.executable, '-c', {'import resource; ' + shown!r}]\n"
        "    await (await Child.start(command, Path('/'), {}, 1, ['NOFILE:100:100'])).run(seen, seen)\n"
        "trio.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["90", "90", "700"]


def test_a_program_runs_though_it_cannot_be_the_first_to_go() -> None:
    hidden = 'mount -t tmpfs none /proc && exec "$@" 5>&1'
    command = [*EXEC_LIMITED, "5", "", "NOFILE:50:50", "--", "sh", "-c", "ulimit -n"]
    done = subprocess.run(["unshare", "-rm", "sh", "-c", hidden, "sh", *command], capture_output=True, text=True)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr:
        pytest.skip("nothing may be mounted here")
    assert done.stdout == f"/proc/self/oom_score_adj {errno.ENOENT}\n50\n"


async def test_a_limit_that_cannot_be_set_is_told_in_the_log_and_the_program_runs() -> None:
    seen: list[bytes] = []

    async def on_lines(lines: Sequence[NumberedLine]) -> None:
        seen.extend(line for _, line in lines if isinstance(line, bytes))

    refused = ["NOFILE:50:40", "FSIZE:512:512"]  # the first for being more than itself
    with capture_logs() as logs:
        child = await ChildProcess.start(["sh", "-c", "ulimit -f"], Path("/"), os.environ, 1, refused)
    assert await child.run(on_lines, on_lines) == 0
    assert seen == [b"1"]
    assert [(entry["log_level"], entry["what"], entry["error"]) for entry in logs] == [
        ("warning", "RLIMIT_NOFILE", "Operation not permitted")
    ]


async def test_a_job_whose_program_cannot_be_started_fails_with_that_sentence(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    assert (await outcome(tmp_path / "state", Pipeline((str(program), "{input}")))).error == (
        "Pipeline error: cannot start program, the program of the pipeline pdf: Exec format error"
    )
