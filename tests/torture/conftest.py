from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from subprocess import Popen

import pytest
from torture.disk import build_shim
from torture.forge import Forge, forge_process, open_forge


@pytest.fixture(scope="session")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Popen[bytes]]:
    """The process that forks the daemons. disk.c is loaded, and inactive until it gets a directory."""
    library = build_shim(tmp_path_factory.mktemp("shim"))
    with forge_process({"LD_PRELOAD": str(library)}) as process:
        yield process


@pytest.fixture
async def forge(process: Popen[bytes], tmp_path: Path) -> AsyncIterator[Forge]:
    async with open_forge(process, tmp_path) as forge:
        yield forge
