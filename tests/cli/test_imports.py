"""What a program that reports or watches imports: it starts fast, and needs none of the server's packages."""

import subprocess
import sys

import pytest
from support.reporting import WAYS, place, registered
from support.serving import PATIENCE, ServedDaemon

SERVER = {"hypercorn", "jwt", "prometheus_client", "python_multipart", "quart", "quart_trio", "structlog"}
HEAVY = {*SERVER, "anyio", "asyncio", "httpx", "progressd.config", "rich", "sqlite3", "trio", "wsproto"}


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def loaded(program: str) -> set[str]:
    """Return the modules that a program has imported."""
    done = python(f"import sys\n{program}\nprint(*sys.modules)")
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.splitlines()[-1].split())


def command(*arguments: str) -> str:
    run = f"    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code"
    return f"from progressd.cli.main import main\ntry:\n{run}"


@pytest.mark.parametrize("way", WAYS)
def test_emit_and_job_import_little(way: str, daemon: ServedDaemon) -> None:
    job = registered(daemon)
    modules = loaded(command("emit", "--job", job, f"--{way}", place(daemon, way), "One"))
    assert not modules & {*HEAVY, "progressd.client.job"}
    where = f"{way}={place(daemon, way)!r}"
    modules = loaded(f"from progressd.client import Job\nwith Job({where}) as job:\n    job.step('One')")
    assert not modules & {*HEAVY, "click"}


@pytest.mark.parametrize("way", WAYS)
def test_a_plain_report_imports_only_c_modules(way: str, daemon: ServedDaemon) -> None:
    arguments = ["progressd", "emit", "--job", registered(daemon), f"--{way}", place(daemon, way), "One"]
    run = "try:\n    entry.main()\nexcept SystemExit as end:\n    assert not end.code"
    own = loaded(f"import progressd.cli.entry as entry\nsys.argv = {arguments}\n{run}")
    known = loaded("")
    assert own - known <= {"progressd", "progressd.cli", "progressd.cli.entry", "progressd.cli.fast_emit", "_socket"}


@pytest.mark.parametrize("arguments", [["run", "true"], ["watch", "JOB"], ["jobs"], ["cancel", "JOB"]])
def test_commands_of_a_client_need_no_server_packages(arguments: list[str], daemon: ServedDaemon) -> None:
    job = registered(daemon)
    if arguments[0] == "watch":
        for event in ({"type": "status_change", "data": {"new_status": "processing"}}, {"type": "completed"}):
            daemon.request("POST", f"/api/jobs/{job}/events", json=event).raise_for_status()
    name, *rest = [argument.replace("JOB", job) for argument in arguments]
    modules = loaded(command(name, "--url", daemon.url, *rest))
    assert modules & SERVER == set()
    assert name != "run" or not modules & {"asyncio", "rich", "progressd.config"}


def test_the_list_starts_without_a_framework() -> None:
    modules = loaded("import progressd.cli.screen.app")
    assert not modules & {*SERVER, "asyncio", "progressd.config", "rich.console", "rich.progress", "rich.text"}


def test_a_command_starts_before_the_long_imports(daemon: ServedDaemon) -> None:
    launch = "from progressd.client.run import launch as module\nreal = module.launch\n"
    launch += (
        "def launch(*words, **more):\n    print(*sys.modules)\n    return real(*words, **more)\nmodule.launch = launch"
    )
    program = f"import sys\nsys.argv = ['progressd', 'run', '--url', {daemon.url!r}, '--', 'true']\n"
    done = python(f"{program}{launch}\nfrom progressd.cli.entry import main\nmain()")
    assert (done.returncode, done.stderr) == (0, "")
    before = set(done.stdout.split())
    assert "progressd.client.run.registration" in before
    assert not before & {
        *HEAVY,
        "click",
        "email",
        "http",
        "inspect",
        "msgspec",
        "progressd.detect",
        "threading",
        "uuid",
    }


@pytest.mark.parametrize("arguments", [["--version"], ["emit", "--help"], ["watch", "--help"]])
def test_a_command_imports_no_other_command(arguments: list[str]) -> None:
    modules = loaded(command(*arguments))
    assert "click" in modules
    assert not modules & {*HEAVY, "progressd.client.rest", "progressd.cli.commands.serve"}


@pytest.mark.parametrize("name", ["serve", "doctor"])
def test_without_the_server_extra_the_error_says_so(name: str) -> None:
    missing = f"import sys\nsys.modules.update(dict.fromkeys({SERVER!r}))\n"
    done = python(f"{missing}from progressd.cli.main import main\nmain([{name!r}])")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: this command needs ")
    hint = "install progressd with the extra server; in a clone: pip install '.[server]'"
    assert done.stderr.endswith(f", which is not installed ({hint})\n")
