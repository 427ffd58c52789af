"""The directories of the benchmark. Git ignores what it builds and installs."""

from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
PEERS: Final = HERE / "peers"
BUILT: Final = HERE / ".build"  # compiled programs, Node's modules, the store with a million jobs
PYTHON: Final = HERE / ".venv" / "bin" / "python"  # of the peers in Python
NODE_MODULES: Final = BUILT / "node" / "node_modules"
