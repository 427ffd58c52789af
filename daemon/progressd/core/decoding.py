"""Reading JSON that a stranger wrote: the right type comes out, or a sentence about what is wrong."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from progressd.core.errors import InvalidInput

T = TypeVar("T")


def decoded(decode: Callable[[bytes], T], text: bytes, what: str) -> T:
    """What `decode`, a msgspec decoder, makes of `text`. Raises InvalidInput, saying that it is not `what` and why."""
    try:
        return decode(text)
    except msgspec.MsgspecError as error:
        reason = str(error)
    except UnicodeDecodeError:
        reason = "the text is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    raise InvalidInput(f"not {what}: {reason}")
