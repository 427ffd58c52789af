"""Resource limits of real children, and the errors of jobs that exceed them."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from progressd.runner.process import ResourceLimits
from support.daemon import running_daemon
from support.submitting import ended, python, run, shell, submit

MIB = 1 << 20
KINDS = (resource.RLIMIT_DATA, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
LIMITS = ResourceLimits(memory=300 * MIB, cpu=2, file=10 * MIB, open_files=100)
EXITS = [
    (-signal.SIGXCPU, b"", "used more than 2s of processor time, its limit"),
    (128 + signal.SIGXCPU, b"", "used more than 2s of processor time, its limit"),
    (-signal.SIGXFSZ, b"", "wrote a file larger than 10MiB, its limit"),
    (-signal.SIGABRT, b"", "was killed by SIGABRT, perhaps because it exceeded its memory limit of 300MiB"),
    (128 + signal.SIGKILL, b"", "failed with exit status 137, perhaps because it exceeded its memory limit of 300MiB"),
    (1, b"MemoryError\n", "failed with exit status 1, perhaps because it exceeded its memory limit of 300MiB"),
    (
        3,
        b"JavaScript heap out of memory",
        "failed with exit status 3, perhaps because it exceeded its memory limit of 300MiB",
    ),
    (1, b"no such page", "failed with exit status 1: no such page"),
    (-signal.SIGSEGV, b"", "was killed by SIGSEGV"),
]


@pytest.mark.parametrize(("status", "stderr", "sentence"), EXITS)
def test_an_exit_status_names_the_limit(status: int, stderr: bytes, sentence: str) -> None:
    assert LIMITS.describe_exit("scan", status, stderr) == f"scan {sentence}"


ALLOCATE = "x = bytearray(400 << 20)"
MEMORY = "failed with exit status 1, perhaps because it exceeded its memory limit of 200MiB"
EXCEEDED = {  # a pipeline, and the end of its job's error
    "memory": (python(ALLOCATE, max_memory_bytes=200 * MIB), MEMORY),
    "descendant": (
        python(
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{ALLOCATE}']); sys.exit(1)",
            max_memory_bytes=200 * MIB,
        ),
        MEMORY,
    ),
    "cpu": (shell("while :; do :; done", max_cpu_seconds=1), "used more than 1s of processor time, its limit"),
    "file": (shell("head -c 2000000 /dev/zero > file", max_file_bytes=MIB), "wrote a file larger than 1MiB, its limit"),
}


async def test_a_job_over_its_limit_fails_with_a_sentence(tmp_path: Path) -> None:
    pipelines = {name: pipeline for name, (pipeline, _) in EXCEEDED.items()}
    async with running_daemon(tmp_path, pipelines={**pipelines, "next": shell("true")}) as daemon:
        jobs = {name: await submit(daemon, name) for name in EXCEEDED}
        errors = {name: (await ended(daemon, job_id)).error for name, job_id in jobs.items()}
        assert (await run(daemon, "next")).error is None
    assert errors == {name: f"Pipeline error: {name} {end}" for name, (_, end) in EXCEEDED.items()}


async def test_a_childs_limits_do_not_change_the_daemons(tmp_path: Path) -> None:
    program = (
        "import json, sys\nfrom resource import *\n"
        "assert getrlimit(RLIMIT_CORE) == (0, 0)\n"
        "assert open('/proc/self/oom_score_adj').read() == '500\\n'\n"
        "kinds = RLIMIT_DATA, RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_NOFILE\n"
        "json.dump([getrlimit(kind) for kind in kinds], open(sys.argv[2], 'w'))"
    )
    runner = {"concurrency": 1, "max_memory_bytes": 1 << 30, "max_cpu_seconds": 60.4, "max_file_bytes": MIB}
    pipeline = python(program, result=True, max_open_files=50)
    before = [resource.getrlimit(kind) for kind in KINDS]
    async with running_daemon(tmp_path, pipelines={"pdf": pipeline}, runner=runner) as daemon:
        done = await run(daemon, "pdf")
        assert done.error is None
        seen = daemon.daemon.files.output(done.id).read_text()
    assert seen == f"[[{1 << 30}, {1 << 30}], [60, 65], [{MIB}, {MIB}], [50, 50]]"
    assert [resource.getrlimit(kind) for kind in KINDS] == before


def test_a_childs_limits_stay_below_the_daemons() -> None:
    shown = "print(*resource.getrlimit(resource.RLIMIT_NOFILE), open('/proc/self/oom_score_adj').read())"
    program = (
        "import resource, sys, trio\nfrom pathlib import Path\n"
        "from progressd.detect.plan import Plan\n"
        "from progressd.runner.process import ChildProcess as Child, ResourceLimits\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (80, 90))\n"
        "Path('/proc/self/oom_score_adj').write_text('700')\n"
        "async def seen(lines):\n    for _, line in lines: print(line.decode())\n"
        "async def nothing(stream, chunk): pass\n"
        "async def main():\n"
        f"    command = [sys.executable, '-c', {'import resource; ' + shown!r}]\n"
        "    limits = ResourceLimits(1 << 30, 60, 1 << 30, 100)\n"
        "    await (await Child.start(Plan(tuple(command)), Path('/'), {}, 1, limits)).run(seen, nothing)\n"
        "trio.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["90", "90", "700"]
