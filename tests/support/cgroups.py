"""A delegated cgroup, as systemd gives one to a service. Whatever runs in it is killed with it. CI requires it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from progressd.runner.process import ENTER
from progressd.system.cgroup import DELEGATED, MOUNTED, Cgroup

FORKING = "import os\nprint(flush=True)\nwhile True:\n    if os.fork(): os._exit(0)"
"""A program whose process id changes faster than a search of /proc takes. Run it only where it is certainly killed."""


def entering(cgroup: Cgroup) -> list[str]:
    """Return the arguments that run a command in a cgroup."""
    return [*ENTER, cgroup.entrance]


@contextlib.contextmanager
def delegated() -> Iterator[Cgroup]:
    """Create such a cgroup. Skip the test if this is not permitted."""
    path = None
    try:
        root = next(Path(root) for root in MOUNTED if Path(root, "cgroup.procs").exists())
        own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].partition("\n")[0]
        path = root / own / f"progressd-test-{os.getpid()}"
        path.mkdir()
        os.setxattr(path, DELEGATED, b"1")
    except (OSError, StopIteration) as error:
        if path is not None and path.exists():
            path.rmdir()
        if os.environ.get("SYSTEMD_TESTS") == "required":
            raise
        pytest.skip(f"no cgroup can be delegated: {error}")
    cgroup = Cgroup(str(path))
    try:
        yield cgroup
    finally:
        assert cgroup.end()
        assert not path.exists()
