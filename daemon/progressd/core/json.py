"""Decode JSON from clients. An error contains a sentence with the reason."""

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from progressd.core.errors import InvalidInput
from progressd.core.messages import JobStatus

# Raised by msgspec's decoders. UnicodeDecodeError, for text that is not UTF-8, is not a MsgspecError.
UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

T = TypeVar("T")


def decode(decode: Callable[[bytes], T], text: bytes, what: str) -> T:
    """Decode `text` with a msgspec decoder. Raises InvalidInput: "not `what`", and the reason."""
    try:
        return decode(text)
    except UNDECODABLE as error:
        raise InvalidInput(f"not {what}: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """Return the reason why a text is invalid. `error`: one of UNDECODABLE."""
    match error:
        case UnicodeDecodeError():
            return "the text is not UTF-8"
        case RecursionError():
            return "it is nested too deeply"
    said = str(error)
    if said.startswith("Invalid enum value") and said.endswith("status`"):  # msgspec does not list the values
        said += f", where one of {', '.join(JobStatus)} is expected"
    return said
