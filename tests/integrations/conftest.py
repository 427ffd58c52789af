from collections.abc import Iterator

import pytest
from support.serving import ServedDaemon, served_daemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    """One daemon for all tests here."""
    with served_daemon(tmp_path_factory.mktemp("served") / "state") as daemon:
        yield daemon
