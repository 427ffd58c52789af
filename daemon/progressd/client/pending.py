"""What the daemon has still to be told of one job, and what its answers mean. Does no I/O.

State changes wait until they are acknowledged, and are told again after a lost connection: the daemon takes each of
them once. Of the progress only the newest waits, so a backlog is never longer than three events.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct

from progressd.client.errors import may_change

Event: TypeAlias = Mapping[str, Any]

_INVALID: Final = 400
_CONFLICT: Final = 409
_UNKNOWN: Final = 404
UNKNOWN_MOST: Final = (
    100  # times to report on a job of somebody else that has to be registered again; 20 s at 5 a second
)
_PLAIN: Final = ("kind", "total_steps", "lease_seconds")  # what is left of a registration that is refused


class EventAnswer(Struct, frozen=True):
    """What the daemon says to one event. `status` as over HTTP, where it refuses."""

    ok: bool
    error: str = ""
    status: int = _CONFLICT
    cursor: str = ""

    @property
    def later(self) -> bool:
        """Whether the same may be taken later."""
        return not self.ok and may_change(self.status)


class PendingEvents:
    """Of the job `job_id`. `registration`: the data that makes it known; None where somebody else has done so."""

    def __init__(self, job_id: str, registration: Mapping[str, Any] | None) -> None:
        self._job_id = job_id
        self._registration = None if registration is None else self._event("job_created", registration)
        self._registered = self._registration
        self._cursor = ""  # the newest that the daemon gave us
        self._unknown = 0  # answers in a row that there is no such job
        self._progress: Event | None = None
        self._last: Event | None = None  # progress that was told or waits
        self._end: Event | None = None
        self._closing = False
        self._refusal = ""  # that may mean that somebody has cancelled the job
        self.cancelled = False
        self.over = False  # nothing more is to be told, or nothing more is taken

    @property
    def waiting(self) -> bool:
        """Whether there is something to tell now."""
        return not self.over and bool(self._registration or self._progress or self._end or self._refusal)

    def move(self, data: Mapping[str, Any]) -> None:
        """There is newer progress."""
        self._progress = self._last = self._event("progress", data)

    def end(self, type_: str | None, data: Mapping[str, Any]) -> None:
        """There will be no more. `type_`: the event that ends the job; None where somebody else will end it."""
        self._end = None if type_ is None else self._event(type_, data)
        self._closing = True
        self._close()

    def batch(self) -> list[Event]:
        """What to tell now, in order. Where nothing waits: the question whether somebody has cancelled the job."""
        if not self.waiting or self._refusal:
            # accepted only where it is so already, and a sign of life in any case
            return [self._event("status_change", {"old_status": "cancelled", "new_status": "cancelled"})]
        return [event for event in (self._registration, self._progress, self._end) if event is not None]

    def renewal(self) -> list[Event]:
        """What shows that the producer is there, after a silence too: its last progress, once more."""
        return self.batch() if self.waiting or self._last is None else [self._last]

    def answered(self, batch: Sequence[Event], answers: Sequence[EventAnswer]) -> str:
        """Take in the answers to a batch. What a person should know of them, or "".

        An answer that asks to try again later, and those after it, change nothing.
        """
        for event, answer in zip(batch, answers, strict=True):
            if answer.later or self.over:
                break
            if answer.ok:
                self._cursor, self._unknown = answer.cursor or self._cursor, 0
                self._taken(event)
            elif answer.status == _UNKNOWN and event is not self._registration and self._may_be_known_again():
                break
            elif complaint := self._refused(event, answer):
                return complaint
        self._close()
        return ""

    def _taken(self, event: Event) -> None:
        if event is self._registration:
            self._registered, self._registration = self._registration, None
        elif event is self._progress:
            self._progress = None
        elif event is self._end:
            self._end = self._progress = None
            self._refusal = ""  # of progress that was told before it, and once more
        elif event["type"] == "status_change":
            self.cancelled = self.over = True

    def _may_be_known_again(self) -> bool:
        """Tell all of the job again if the daemon, which knew it, may have been restored from an older backup.

        The daemon refuses the registration if the job was deleted instead. A job that somebody else has registered
        is registered again by them.
        """
        self._unknown += 1
        if not self._cursor or self._unknown > UNKNOWN_MOST:
            return False
        if self._registered is not None:
            self._registration = {**self._registered, "cursor": self._cursor}
        self._progress = self._progress or self._last
        self._refusal = ""
        return True

    def _refused(self, event: Event, answer: EventAnswer) -> str:
        asked = event["type"] == "status_change" and event is not self._end
        if asked and answer.status == _CONFLICT:
            self.over = bool(self._refusal)
            return self._refusal
        if answer.status == _CONFLICT and event is not self._registration:
            # it has finished: the next question is whether it was cancelled
            self._refusal = self._refusal or answer.error
            return ""
        if event["type"] == "progress" and answer.status != _UNKNOWN:
            self._taken(event)
        elif event is self._end and event["data"] and event["type"] == "completed" and answer.status != _UNKNOWN:
            self._end = self._event("completed", {})  # an end without a result is still one
        elif event is self._registration and answer.status == _INVALID and not event["data"].keys() <= set(_PLAIN):
            data = {name: value for name, value in event["data"].items() if name in _PLAIN}
            self._registration = self._event("job_created", data)  # a job without its options is still one
        else:
            self.over = True
            if answer.status == _UNKNOWN:
                return f"{answer.error} any more: nothing of it is reported from here on"
        return answer.error

    def _close(self) -> None:
        self.over = self.over or (self._closing and not self.waiting)

    def _event(self, type_: str, data: Mapping[str, Any]) -> Event:
        return {"type": type_, "job_id": self._job_id, "data": data}
