from pathlib import Path

import pytest
from torture.disk import build_shim


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to preload into a daemon, so that its disk and its clock are in our hands."""
    return build_shim(tmp_path_factory.mktemp("shim"))
