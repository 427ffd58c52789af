from collections.abc import AsyncIterator

import pytest
from progressd.store.sqlite import SQLiteStore
from support.spine import Spine, running


@pytest.fixture
async def spine(store: SQLiteStore) -> AsyncIterator[Spine]:
    """The core of the daemon over the fixture `store`."""
    async with running(store) as spine:
        yield spine
