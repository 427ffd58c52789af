"""What a program loads that reports: a script calls `progressd emit` for each of its steps."""

import subprocess
import sys

import httpx
import pytest
from support.reporting import WAYS, place
from support.serving import PATIENCE, ServedDaemon

HEAVY = {
    "anyio",
    "asyncio",
    "httpx",
    "hypercorn",
    "progressd.config",
    "quart",
    "rich",
    "sqlite3",
    "structlog",
    "trio",
    "wsproto",
}


@pytest.fixture
def daemon(served: ServedDaemon) -> ServedDaemon:
    return served


def loaded(program: str) -> set[str]:
    """The modules that a program has loaded at its end."""
    code = f"import sys\n{program}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return set(done.stdout.splitlines()[-1].split())


def command(*arguments: str) -> str:
    run = f"    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code"
    return f"from progressd.cli.main import main\ntry:\n{run}"


@pytest.mark.parametrize("way", WAYS)
def test_emit_loads_nothing_of_the_server(way: str, daemon: ServedDaemon) -> None:
    job = httpx.post(f"{daemon.url}/api/jobs", json={}, trust_env=False, timeout=PATIENCE).json()["id"]
    modules = loaded(command("emit", "--job", job, f"--{way}", place(daemon, way), "One"))
    assert not modules & HEAVY
    assert "progressd.client.job" not in modules


@pytest.mark.parametrize("way", WAYS)
def test_a_job_loads_nothing_of_the_server(way: str, daemon: ServedDaemon) -> None:
    where = f"{way}={place(daemon, way)!r}"
    modules = loaded(f"from progressd.client import Job\nwith Job({where}) as job:\n    job.step('One')")
    assert not modules & {*HEAVY, "click"}


def test_run_loads_of_them_only_trio(daemon: ServedDaemon) -> None:
    modules = loaded(command("run", "--url", daemon.url, "true"))
    assert not modules & (HEAVY - {"anyio", "trio", "wsproto"})


@pytest.mark.parametrize("arguments", [["--version"], ["emit", "--help"]])
def test_a_command_loads_no_other_command(arguments: list[str]) -> None:
    modules = loaded(command(*arguments))
    assert not modules & {*HEAVY, "progressd.cli.commands.serve", "progressd.client.rest"}
