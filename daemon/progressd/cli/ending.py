"""How commands that write files end when they are told to: in order, so that nothing half done is left behind."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

NUMBERS: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Within this, SIGTERM and SIGHUP raise SystemExit with a shell's status for them, unless they are ignored."""
    ours = [number for number in NUMBERS if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _frame: object) -> NoReturn:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # timeout(1) sends it twice, and the second would come in between
        raise SystemExit(128 + number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
