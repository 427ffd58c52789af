"""The unacknowledged events of one job, and the interpretation of the daemon's answers. Does no I/O.

State changes are kept until they are acknowledged, and sent again after a lost connection. The daemon applies each
once. Only the newest progress is kept, so at most three events are pending.
"""

import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from msgspec import Struct

from progressd.client.errors import is_temporary

Event: TypeAlias = Mapping[str, Any]

MAX_UNKNOWN: Final = 100  # reports of an unknown job that another program may register again; 20 s at 5 a second
_MINIMAL: Final = ("kind", "total_steps", "lease_seconds")  # fields kept when a rejected registration is sent again


class EventAnswer(Struct, frozen=True):
    """The answer to one event; `status` is the HTTP status of a rejection."""

    ok: bool
    error: str = ""
    status: int = HTTPStatus.CONFLICT
    cursor: str = ""

    @property
    def temporary(self) -> bool:
        """Return whether the same event may be accepted later."""
        return not self.ok and is_temporary(self.status)


class PendingEvents:
    """The events of `job_id`. `registration`: its data; None for a job that another program has registered."""

    def __init__(self, job_id: str, registration: Mapping[str, Any] | None) -> None:
        self._job_id = job_id
        self._registration = None if registration is None else self._event("job_created", registration)
        self._registered = self._registration
        self._cursor = ""  # the newest cursor from the daemon
        self._unknown = 0  # number of consecutive answers saying that the job does not exist
        self._progress: Event | None = None
        self._last: Event | None = None  # the newest progress, sent or waiting
        self._ends_at: float | None = None  # the monotonic time at which the program expects the end of the job
        self._end: Event | None = None
        self._closing = False
        self._rejection = ""  # error for a rejected event; perhaps the job was cancelled
        self.cancelled = False
        self.over = False  # nothing is left to send, or the daemon accepts no further events

    @property
    def waiting(self) -> bool:
        """Return whether any event waits to be sent."""
        return not self.over and bool(self._registration or self._progress or self._end or self._rejection)

    def set_progress(self, data: Mapping[str, Any]) -> None:
        """Replace the waiting progress."""
        self._progress = self._last = self._event("progress", data)

    def expect_end(self, at: float) -> None:
        """Send the remaining time with the progress, until this monotonic time."""
        self._ends_at = at

    def drop_progress(self) -> None:
        """Send no progress, not even with the start of the job."""
        self._progress = self._last = None

    def end(self, type_: str | None, data: Mapping[str, Any]) -> None:
        """Add the last event. `type_`: None if another program ends the job."""
        self._end = None if type_ is None else self._event(type_, data)
        self._closing = True
        self._close()

    def batch(self) -> list[Event]:
        """Return the events to send, in order. If none wait, return an event that checks for a cancellation."""
        if not self.waiting or self._rejection:
            # accepted only if the job was already cancelled; renews the lease in any case
            return [self._event("status_change", {"old_status": "cancelled", "new_status": "cancelled"})]
        self._count_down()
        return [event for event in (self._registration, self._progress, self._end) if event is not None]

    def renewal(self) -> list[Event]:
        """Return the events that renew the lease: the waiting events, or else the last progress again."""
        if self.waiting or self._last is None:
            return self.batch()
        self._count_down()
        return [self._last]

    def _count_down(self) -> None:
        """Put the current remaining time into the progress, because the report may be old or sent again."""
        if self._ends_at is None or self._last is None:
            return
        left = max(0.0, self._ends_at - time.monotonic())  # after 0, the daemon estimates again
        self._last = self._event("progress", {**self._last["data"], "eta_seconds": round(left, 1)})
        self._progress = self._last if self._progress is not None else None

    def acknowledge(self, batch: Sequence[Event], answers: Sequence[EventAnswer]) -> str:
        """Process the answers to a batch. Return an error for the user, or "".

        A temporary rejection and the answers after it change nothing.
        """
        for event, answer in zip(batch, answers, strict=True):
            if answer.temporary or self.over:
                break
            if answer.ok:
                self._cursor, self._unknown = answer.cursor or self._cursor, 0
                self._accepted(event)
            elif answer.status == HTTPStatus.NOT_FOUND and event is not self._registration and self._register_again():
                break
            elif error := self._rejected(event, answer):
                return error
        self._close()
        return ""

    def _accepted(self, event: Event) -> None:
        if event is self._registration:
            self._registered, self._registration = self._registration, None
        elif event is self._progress:
            self._progress = None
        elif event is self._end:
            self._end = self._progress = None
            self._rejection = ""  # was for progress that was sent again before the end
        elif event["type"] == "status_change":
            self.cancelled = self.over = True

    def _register_again(self) -> bool:
        """Send everything again if the daemon forgot the job, for example because an older backup was restored.

        If the job was deleted instead, the daemon rejects the registration. If another program registered the job, that
        program registers it again.
        """
        self._unknown += 1
        if not self._cursor or self._unknown > MAX_UNKNOWN:
            return False
        if self._registered is not None:
            self._registration = {**self._registered, "cursor": self._cursor}
        self._progress = self._progress or self._last
        self._rejection = ""
        return True

    def _rejected(self, event: Event, answer: EventAnswer) -> str:
        asked = event["type"] == "status_change" and event is not self._end
        if asked and answer.status == HTTPStatus.CONFLICT:
            self.over = bool(self._rejection)
            return self._rejection
        if answer.status == HTTPStatus.CONFLICT and event is not self._registration:
            # the job has finished; the next batch checks whether it was cancelled
            self._rejection = self._rejection or answer.error
            return ""
        if event["type"] == "progress" and answer.status != HTTPStatus.NOT_FOUND:
            self._accepted(event)
        elif (
            event is self._end
            and event["data"]
            and event["type"] == "completed"
            and answer.status != HTTPStatus.NOT_FOUND
        ):
            self._end = self._event("completed", {})  # the job can still end without its result
        elif (
            event is self._registration
            and answer.status == HTTPStatus.BAD_REQUEST
            and not event["data"].keys() <= set(_MINIMAL)
        ):
            data = {name: value for name, value in event["data"].items() if name in _MINIMAL}
            self._registration = self._event("job_created", data)  # the job is still visible without its options
        else:
            self.over = True
            if answer.status == HTTPStatus.NOT_FOUND:
                return f"{answer.error}; the job is not reported any more"
        return answer.error

    def _close(self) -> None:
        self.over = self.over or (self._closing and not self.waiting)

    def _event(self, type_: str, data: Mapping[str, Any]) -> Event:
        return {"type": type_, "job_id": self._job_id, "data": data}
