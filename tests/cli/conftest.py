import pytest
from support.serving import ServedDaemon


@pytest.fixture(scope="session")
def daemon(served: ServedDaemon) -> ServedDaemon:
    """Return the daemon in its own process that other tests share."""
    return served
