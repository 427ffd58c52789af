import pytest
from progressd.client import reporter
from progressd.client.backoff import backoff


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """All waits of a `Job` a tenth as long."""
    monkeypatch.setattr("progressd.client.reporter.backoff", lambda failures, longest: backoff(failures, longest) / 10)
    for wait in ("BEAT", "PACE", "SLOW_PACE"):
        monkeypatch.setattr(f"progressd.client.reporter.{wait}", getattr(reporter, wait) / 10)
