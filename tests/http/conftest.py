from collections.abc import AsyncIterator

import httpx
import pytest
from support.daemon import RunningDaemon
from support.http_client import client_of


@pytest.fixture
async def client(daemon: RunningDaemon) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the fixture `daemon`."""
    async with client_of(daemon) as client:
        yield client
