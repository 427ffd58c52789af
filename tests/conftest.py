import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from progressd.store.sqlite import SQLiteStore
from support.daemon import RunningDaemon, running_daemon
from support.keys import SECRET
from support.serving import ServedDaemon, served_daemon
from torture.disk import build_shim
from torture.fork_server import ForkServer, start_with
from trio.testing import MockClock
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# Few examples, and the same in each run; `--hypothesis-profile exploring` uses many new ones.
ANY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("steady", **ANY, derandomize=True, max_examples=50)
settings.register_profile("exploring", **ANY, derandomize=False, max_examples=500)
settings.load_profile("steady")


def pytest_configure() -> None:
    """Restore the signals that a shell ignores in background jobs, and English, also for child processes."""
    os.environ["LANGUAGE"] = "en"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


# Tests of other programs wait most of the time, and some of their files take a minute. They start first, in this order.
LONGEST = ("systemd", "webui", "js", "cli", "torture", "pdf", "client", "integrations")


class Scheduling(LoadFileScheduling):
    """Keep the tests of a file in one worker, and so those of the browser and those of the machine with systemd."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        directory = file.rpartition("/")[0]
        return directory if directory in ("tests/webui", "tests/systemd") else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        directory = item.nodeid.split("/")[1]
        return LONGEST.index(directory) if directory in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    config.option.loadscopereorder = False  # the number of tests says little
    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give programs their own directory for temporary files, and delete what killed ones leave there."""
    tmp_path_factory.getbasetemp()  # stays outside
    with (
        tempfile.TemporaryDirectory(prefix="progressd-tests-", ignore_cleanup_errors=True) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        os.chmod(directory, 0o1777)  # some programs run as another user
        patch.setenv("TMPDIR", directory)
        yield


@pytest.fixture(autouse=True)
def no_loop_of_the_browser(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hide the event loop of Playwright. Once a worker has used the browser, its thread seems to run a loop."""
    loop = None if "browser" in request.fixturenames else asyncio._get_running_loop()
    if loop is not None:
        asyncio._set_running_loop(None)
    yield
    if loop is not None:
        asyncio._set_running_loop(loop)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Restore the umask, which a daemon in this process changes."""
    umask = os.umask(0o022)
    os.umask(umask)
    try:
        return (yield)
    finally:
        os.umask(umask)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rounds", type=int, default=100, help="kills of the daemon in each torture test; 12 s of churn each"
    )
    parser.addoption("--seed", type=int, default=None, help="seed of the torture tests; a failure prints it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail each test in which a daemon logs a key or a token."""
    report = yield
    logged = "\n".join(text for _, text in report.sections)
    if report.passed and (found := SECRET.search(logged)):
        report.outcome = "failed"
        report.longrepr = f"the log contains a secret: {logged[max(0, found.start() - 500) : found.end()]}"
    return report


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("rounds"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given = request.config.getoption("seed")
    chosen = int.from_bytes(os.urandom(4), "big") if given is None else int(given)
    print(f"--seed {chosen}")
    return chosen


@pytest.fixture
def slow_clock() -> MockClock:
    """A slow clock that a test can advance, so that no timeout expires on a busy machine."""
    return MockClock(rate=0.1)


@pytest.fixture
def free_port() -> Iterator[int]:
    """A free port, reserved for this test."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that the daemon can bind it, too
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore.open(tmp_path / "store.sqlite")
    yield store
    store.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    """A daemon in its own process, shared by all tests that do not harm it."""
    with served_daemon(tmp_path_factory.mktemp("served") / "state") as daemon:
        yield daemon


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[RunningDaemon]:
    """A daemon with the default settings."""
    async with running_daemon(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def disk_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library torture/disk.c, which forked daemons load."""
    library = build_shim(tmp_path_factory.mktemp("shim"))
    start_with(library)
    return library


@pytest.fixture
def fork_server(disk_shim: Path, tmp_path: Path) -> ForkServer:
    return ForkServer(tmp_path)
