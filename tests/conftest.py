from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from progressd.store.sqlite import SQLiteStore

settings.register_profile("progressd", deadline=None)
settings.load_profile("progressd")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore.open(tmp_path / "store.sqlite")
    yield store
    store.close()
