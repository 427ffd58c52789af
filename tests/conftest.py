from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from progressd.store.sqlite import SQLiteStore

from daemon import RunningDaemon, running_daemon

settings.register_profile("progressd", deadline=None)
settings.load_profile("progressd")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore.open(tmp_path / "store.sqlite")
    yield store
    store.close()


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[RunningDaemon]:
    """A daemon with the default settings; `running_daemon` takes others."""
    async with running_daemon(tmp_path) as running:
        yield running
