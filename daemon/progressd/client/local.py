"""The daemon's Unix socket, for a producer on the same host: an event goes in, and its answer is waited for."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from progressd.client.errors import ClientError, NoDaemon, Refused

ANSWER_TIMEOUT: Final = 60.0  # seconds


def report(path: Path, job_id: str, event: Mapping[str, Any]) -> None:
    """Report an event of a job, and wait until it is durable. Raises NoDaemon, Refused or another ClientError."""
    line = msgspec.json.encode({**event, "job_id": job_id, "ref": 1}) + b"\n"
    try:
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.settimeout(ANSWER_TIMEOUT)
            daemon.connect(str(path))
            daemon.sendall(line)
            answer = daemon.makefile("rb").readline()
    except TimeoutError:
        raise ClientError(f"{path} gave no answer within {ANSWER_TIMEOUT:g} seconds") from None
    except OSError as error:
        raise NoDaemon(f"no daemon answers at {path}: {error.strerror}") from None
    try:
        said = msgspec.json.decode(answer, type=dict[str, Any])
    except msgspec.DecodeError:
        raise ClientError(f"what answers at {path} is not progressd") from None
    if not said.get("ok"):
        raise Refused(409, str(said.get("error")))
