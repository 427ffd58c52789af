"""How commands that write files end when they are told to: in order, so that nothing half done is left behind."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

NUMBERS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Within this, signals to end raise SystemExit with a shell's status for them, unless they are ignored."""
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    ours = {number: before for number in NUMBERS if (before := signal.getsignal(number)) in defaults}
    status = list[int]()

    def end(number: int, _frame: object) -> NoReturn:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # timeout(1) sends it twice, and the second would come in between
        status.append(128 + number)
        raise SystemExit(*status)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    except Exception:
        if status:  # where SQLite was to look for signals, it says of what was raised only that it was interrupted
            raise SystemExit(*status) from None
        raise
    finally:
        for number, before in ours.items():
            signal.signal(number, before)
