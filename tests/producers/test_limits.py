"""What a process of a pipeline may take of the machine, and the sentence when it takes more. Real children."""

import resource
import signal
from pathlib import Path

import pytest
from progressd.config import Pipeline
from progressd.core.job import Job
from progressd.producers.limits import ChildLimits
from submitting import COPY, python, run, shell

from daemon import running_daemon

MIB = 1 << 20
LIMITS = ChildLimits(memory=300 * MIB, cpu=2, file=10 * MIB, open_files=100)
LIMITED = "while [ $(ulimit -f) = unlimited ]; do :; done"  # waits for them
SHORT_OF_MEMORY = "import resource as r\nwhile r.getrlimit(r.RLIMIT_DATA)[0] < 0: pass\n"  # waits until it is
TOLD = [
    (-signal.SIGXCPU, b"", "used more than 2s of processor time, the most that it may"),
    (128 + signal.SIGXCPU, b"", "used more than 2s of processor time, the most that it may"),
    (-signal.SIGXFSZ, b"", "wrote a file of more than 10MiB, the largest that it may"),
    (-signal.SIGABRT, b"", "was ended by SIGABRT, perhaps for want of memory: it may have 300MiB"),
    (128 + signal.SIGKILL, b"", "failed with exit status 137, perhaps for want of memory: it may have 300MiB"),
    (1, b"MemoryError\n", "failed with exit status 1, perhaps for want of memory: it may have 300MiB"),
    (3, b"JavaScript heap out of memory", "failed with exit status 3, perhaps for want of memory: it may have 300MiB"),
    (1, b"no such page", "failed with exit status 1: no such page"),
    (-signal.SIGSEGV, b"", "was ended by SIGSEGV"),
]


@pytest.mark.parametrize(("status", "stderr", "sentence"), TOLD)
def test_an_end_is_told_by_the_limit_that_brought_it(status: int, stderr: bytes, sentence: str) -> None:
    assert LIMITS.told(status, stderr) == sentence


async def outcome(directory: Path, pipeline: Pipeline, **runner: object) -> Job:
    """What becomes of a job; and that the daemon goes on."""
    pipelines = {"pdf": pipeline, "next": shell("true")}
    async with running_daemon(directory, pipelines=pipelines, runner={"slots": 1, **runner}) as daemon:
        done = await run(daemon, "pdf")
        assert (await run(daemon, "next")).error is None
    return done


async def test_a_job_that_wants_more_memory_than_it_may_have_fails_with_that_sentence(tmp_path: Path) -> None:
    done = await outcome(tmp_path, python(SHORT_OF_MEMORY + "x = bytearray(400 << 20)", max_memory_bytes=200 * MIB))
    assert done.error == "Pipeline error: pdf failed with exit status 1, perhaps for want of memory: it may have 200MiB"


async def test_what_a_job_starts_may_have_no_more_than_itself(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(400 << 20)'], check=True)"
    done = await outcome(tmp_path, python(SHORT_OF_MEMORY + program), max_memory_bytes=200 * MIB)
    assert "want of memory" in (done.error or "")


async def test_what_a_job_started_before_it_had_its_limits_gets_them_too(tmp_path: Path) -> None:
    early = f"sh -c '{LIMITED}; exec head -c 2000000 /dev/zero > file' & wait $!"
    done = await outcome(tmp_path, shell(early, max_file_bytes=MIB))
    assert "wrote a file of more than 1MiB" in (done.error or "")


async def test_a_job_that_computes_for_too_long_fails_with_that_sentence(tmp_path: Path) -> None:
    done = await outcome(tmp_path, shell("while :; do :; done", max_cpu_seconds=1))
    assert done.error == "Pipeline error: pdf used more than 1s of processor time, the most that it may"


async def test_a_job_that_writes_too_large_a_file_fails_with_that_sentence(tmp_path: Path) -> None:
    done = await outcome(tmp_path, shell(f"{LIMITED}; head -c 2000000 /dev/zero > file", max_file_bytes=MIB))
    assert done.error == "Pipeline error: pdf wrote a file of more than 1MiB, the largest that it may"


async def test_the_limits_of_the_runner_hold_where_a_pipeline_has_none_of_its_own(tmp_path: Path) -> None:
    program = (
        "import json, sys, time\nfrom resource import *\n"
        "while getrlimit(RLIMIT_CORE) != (0, 0): time.sleep(0.001)\n"
        "while open('/proc/self/oom_score_adj').read() != '500\\n': time.sleep(0.001)\n"
        "kinds = RLIMIT_DATA, RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_NOFILE\n"
        "json.dump([getrlimit(kind) for kind in kinds], open(sys.argv[2], 'w'))"
    )
    runner = {"slots": 1, "max_memory_bytes": 1 << 30, "max_cpu_seconds": 60.4, "max_file_bytes": MIB}
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


def test_a_child_that_has_ended_already_needs_no_limits() -> None:
    LIMITS.impose(2**22 + 1)  # a process id beyond the largest there can be (proc(5), pid_max)
