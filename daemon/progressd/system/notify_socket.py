"""A notification socket for a program that speaks sd_notify(3), such as systemd-notify(1): its status is progress."""

import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Self

import msgspec
import trio
from msgspec.structs import asdict

from progressd.core.event_limits import MAX_STEP_NAME
from progressd.core.events import ReportedProgress
from progressd.system.private_socket import PrivateSocket

MAX_DATAGRAM: Final = 4096  # bytes; systemd also ignores longer messages
MAX_AT_ONCE: Final = 100  # datagrams; only the newest progress matters
MAX_ERRNO: Final = 4095
PREFIX: Final = "X_PROGRESSD_"  # followed by the name of a field of ReportedProgress

_STEPS: Final = re.compile(r"[(\[]?([0-9]{1,16}) ?/ ?([0-9]{1,16})(?![\w./])[)\]]?[\s:,–-]*(.*)")  # at the beginning
_PERCENT: Final = re.compile(r"(?<![\w.,-])([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%[\s:,–-]*")


class Notifications:
    """Convert the messages of one program to progress. Does no I/O."""

    def __init__(self) -> None:
        self.progress = ReportedProgress(0, 0)
        self.error: str | None = None  # the error text of ERRNO=, which a program sends before it fails

    def feed(self, message: bytes) -> bool:
        """Read one message. Return whether it contains progress. Invalid assignments are ignored."""
        if len(message) > MAX_DATAGRAM:
            return False
        before = self.progress
        for line in message.decode(errors="replace").splitlines():
            name, _, value = line.partition("=")
            if name == "STATUS":
                with suppress(ValueError):
                    self._status(value.strip())
            elif name == "ERRNO" and value.isdecimal() and len(value) < 5:
                self.error = os.strerror(int(value)) if 0 < int(value) <= MAX_ERRNO else None
            elif name.startswith(PREFIX):
                self._field(name.removeprefix(PREFIX).lower(), value.strip())
        return self.progress is not before

    def _status(self, text: str) -> None:
        if (steps := _STEPS.match(text)) and int(steps[2]):
            self._set(current_step=int(steps[1]), total_steps=int(steps[2]), step_name=steps[3], percent=None)
        elif percent := _PERCENT.search(text):
            self._set(percent=float(percent[1]), step_name=text if percent.start() else text[percent.end() :])
        else:
            self._set(step_name=text)

    def _field(self, name: str, value: str) -> None:
        with suppress(ValueError):
            if name == "percent" and math.isfinite(float(value)):
                self._set(percent=float(value))
            elif name == "current_step":
                self._set(current_step=int(value), percent=None)
            elif name == "total_steps":
                self._set(total_steps=int(value), percent=None)
            elif name == "step_name":
                self._set(step_name=value)
            elif name in ("unit", "phase"):
                self._set(**{name: value})

    def _set(self, *, step_name: str | None = None, **fields: float | str | None) -> None:
        """Set fields of the progress. Raises ValueError if one is out of range."""
        named = {} if step_name is None else {"step_name": step_name[:MAX_STEP_NAME]}
        self.progress = msgspec.convert({**asdict(self.progress), **fields, **named}, ReportedProgress)


class NotifySocket:
    """A private socket, whose path the program gets by `environment`.

    Descriptors in a message, such as BARRIER=1, are closed at once, because `recv` does not ask the kernel for them.
    Raises OSError.
    """

    def __init__(self, bound: PrivateSocket | None = None) -> None:
        self._bound = bound or PrivateSocket()
        self._socket = self._bound.socket
        self._notifications = Notifications()
        self.environment: Mapping[str, str] = {"NOTIFY_SOCKET": self._bound.path}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close and delete the socket."""
        self._bound.close()

    @property
    def error(self) -> str | None:
        """The error text of the program's last ERRNO=, if any."""
        return self._notifications.error

    async def receive(self) -> ReportedProgress:
        """Return the newest progress as soon as the program sends some."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            if (progress := self.receive_nowait()) is not None:
                return progress

    def receive_nowait(self) -> ReportedProgress | None:
        """Return the newest progress that waits in the socket, if any."""
        found = False
        for _ in range(MAX_AT_ONCE):
            try:
                found |= self._notifications.feed(self._socket.recv(MAX_DATAGRAM + 1))
            except BlockingIOError:
                break
        return self._notifications.progress if found else None
