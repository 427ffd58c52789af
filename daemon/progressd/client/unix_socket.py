"""The daemon's Unix socket, for a producer on the same host: events go in, and their answers are waited for."""

import contextlib
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from progressd.client.errors import APIError, ClientError, ConnectError, ResponseTimeout
from progressd.client.pending import Event, EventAnswer
from progressd.core.json import UNDECODABLE

ANSWER_TIMEOUT: Final = 60.0  # seconds
MAX_ANSWER: Final = 65536  # bytes of an answer


class LocalSocket:
    """A connection to the socket at `path`, made when it is needed. Not for several threads at once."""

    def __init__(self, path: Path, timeout: float = ANSWER_TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._open = contextlib.ExitStack()
        self._socket: socket.socket | None = None

    def exchange(self, events: Sequence[Event]) -> list[EventAnswer]:
        """Report events, and wait until they are durable; the answer to each. Raises ClientError."""
        lines = [msgspec.json.encode({**event, "ref": number}) + b"\n" for number, event in enumerate(events)]
        self.connect()
        assert self._socket is not None
        try:
            try:
                self._socket.sendall(b"".join(lines))
                return [self._answer() for _ in events]
            except TimeoutError:
                raise ResponseTimeout(f"{self._path} gave no answer within {self._timeout:g} seconds") from None
            except OSError as error:
                raise ResponseTimeout(f"the connection to {self._path} broke: {error.strerror}") from None
        except BaseException:  # what comes later would be taken for the answers to something else
            self.close()
            raise

    def close(self) -> None:
        """Leave; another exchange connects again."""
        self._socket = None
        self._open.close()

    def connect(self) -> None:
        """Connect, unless that is so already. Raises ConnectError."""
        if self._socket is not None:
            return
        with contextlib.ExitStack() as opening:
            try:
                daemon = opening.enter_context(socket.socket(socket.AF_UNIX))
                daemon.settimeout(self._timeout)
                daemon.connect(str(self._path))
            except (OSError, ValueError) as error:  # ValueError: the path has a NUL in it
                reason = getattr(error, "strerror", None) or error
                raise ConnectError(f"no daemon answers at {self._path}: {reason}") from None
            self._reader = opening.enter_context(daemon.makefile("rb"))
            self._open = opening.pop_all()
            self._socket = daemon

    def _answer(self) -> EventAnswer:
        line = self._reader.readline(MAX_ANSWER)
        if not line:
            raise ResponseTimeout(f"the daemon at {self._path} closed the connection")
        try:
            return msgspec.json.decode(line, type=EventAnswer)
        except UNDECODABLE:
            raise ClientError(f"what answers at {self._path} is not progressd") from None


def report(path: Path, job_id: str, event: Mapping[str, Any], timeout: float = ANSWER_TIMEOUT) -> None:
    """Report an event of a job, and wait until it is durable. Raises ConnectError, APIError or another ClientError."""
    with contextlib.closing(LocalSocket(path, timeout)) as daemon:
        [answer] = daemon.exchange([{**event, "job_id": job_id}])
    if not answer.ok:
        raise APIError(answer.status, answer.error)
