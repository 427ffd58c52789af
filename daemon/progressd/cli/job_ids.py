"""The job that somebody means who types the beginning of its id, as the other commands show it."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from progressd.client.errors import APIError

if TYPE_CHECKING:
    from progressd.client.rest import RestClient

NEWEST: Final = 1000  # jobs that are looked at
WHOLE: Final = 36  # characters of an id
NAMED: Final = 3  # jobs in the sentence about several

_BEGINNING = re.compile(r"[0-9a-f]{8}[0-9a-f-]{0,27}")


def whole_id(client: "RestClient", given: str) -> str:
    """The id of the one job, of the newest, that begins like this; anything but 8 to 35 characters stays as it is.

    Raises APIError, as the daemon would for a job that is not there, or another ClientError.
    """
    if not is_beginning(given):
        return given
    beginning = given.lower()
    found = [str(job["id"]) for job in client.jobs(limit=NEWEST) if job["id"].startswith(beginning)]
    return the_one(given, found, f" (among the newest {NEWEST} jobs)")


def is_beginning(given: str) -> bool:
    """Whether this may be the beginning of an id, 8 to 35 characters."""
    return bool(_BEGINNING.fullmatch(given.lower()))


def the_one(given: str, found: Sequence[str], among: str = "") -> str:
    """The one id that has been found. Raises APIError where there are several, or none."""
    if not found:
        raise APIError(404, f"no job id begins with {given}{among}")
    if len(found) > 1:
        some = ", ".join(found[:NAMED]) + (", …" if len(found) > NAMED else "")
        raise APIError(409, f"{len(found)} job ids begin with {given}: {some} (give more of the id)")
    return found[0]
