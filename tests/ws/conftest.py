from pathlib import Path

import pytest
import trio
from support.memory import Server


@pytest.fixture
async def server(nursery: trio.Nursery, tmp_path: Path) -> Server:
    return Server(nursery, tmp_path)
