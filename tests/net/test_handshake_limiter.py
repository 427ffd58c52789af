"""The turnstile: a few a turn of the event loop, and more where turns are long."""

import pytest
import trio
from progressd.net.handshake_limiter import MAX_HANDSHAKES, MIN_HANDSHAKES, HandshakeLimiter
from trio.testing import MockClock

WAITING = 200


class Queue:
    """Tasks that wait at a turnstile, and turns of the loop that take so many seconds."""

    def __init__(self, clock: MockClock, seconds: float) -> None:
        self.through: list[int] = []
        self.turns = 0
        self._clock = clock
        self._seconds = seconds

    async def run(self, cancelled: int = 0) -> None:
        handshake_limiter = HandshakeLimiter()

        async def wait(number: int) -> None:
            with trio.CancelScope() as scope:
                if number < cancelled:
                    scope.cancel()
                await handshake_limiter.pass_through()
                self.through.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(WAITING):
                nursery.start_soon(wait, number)
            while len(self.through) < WAITING - cancelled:
                await trio.lowlevel.checkpoint()
                self.turns += 1
                self._clock.jump(self._seconds)


@pytest.mark.parametrize(("seconds", "each"), [(0, MIN_HANDSHAKES), (0.02, 10), (1, MAX_HANDSHAKES)])
async def test_how_many_go_through_follows_from_how_long_turns_are(
    mock_clock: MockClock, seconds: float, each: int
) -> None:
    queue = Queue(mock_clock, seconds)
    await queue.run()
    assert WAITING / each <= queue.turns <= 2 * WAITING / each + 6  # the turnstile may be called every other turn only
    assert sorted(queue.through) == list(range(WAITING))


async def test_those_who_give_up_hold_up_nobody(mock_clock: MockClock) -> None:
    queue = Queue(mock_clock, 0)
    await queue.run(cancelled=WAITING // 2)
    assert sorted(queue.through) == list(range(WAITING // 2, WAITING))
