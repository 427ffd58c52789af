"""The modules for other libraries need none of the daemon's packages, and say which library is missing."""

import subprocess
import sys

import pytest
from support.serving import PATIENCE

SERVER = {"hypercorn", "jwt", "prometheus_client", "python_multipart", "quart", "quart_trio", "structlog", "trio"}


def imported(module: str, before: str = "") -> subprocess.CompletedProcess[str]:
    program = f"import sys\n{before}\nimport progressd.integrations.{module}\nprint(*sys.modules)"
    words = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("module", ["celery", "ocrmypdf", "rich", "rq", "tqdm"])
def test_nothing_of_the_daemon_is_imported(module: str) -> None:
    done = imported(module)
    assert done.returncode == 0, done.stderr
    assert module in done.stdout.split()
    assert not SERVER & set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "package"), [("celery", "Celery"), ("ocrmypdf", "OCRmyPDF"), ("rq", "RQ"), ("tqdm", "tqdm")]
)
def test_a_missing_library_is_named(module: str, package: str) -> None:
    told = imported(module, f"sys.modules[{module!r}] = None").stderr.splitlines()[-1]
    assert told.endswith(f"Error: progressd.integrations.{module} needs {package}: pip install {module}")
