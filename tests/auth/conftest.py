from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo

import pytest


@pytest.fixture
def an_hour_later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that moves the clock of keys and tokens one hour forward."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(hours=1)

    def put_forward() -> None:
        for module in ("progressd.auth.authenticator", "jwt.api_jwt"):
            monkeypatch.setattr(f"{module}.datetime", Clock)

    return put_forward
