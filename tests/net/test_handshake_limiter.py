"""The handshake limiter: each turn of the event loop starts a few handshakes, and more where turns are long."""

import pytest
import trio
from progressd.net.handshake_limiter import MAX_HANDSHAKES, MIN_HANDSHAKES, HandshakeLimiter
from trio.testing import MockClock

WAITING = 200


async def pass_limiter(clock: MockClock, turn_seconds: float, cancelled: int = 0) -> tuple[int, list[int]]:
    """Return how many turns 200 handshakes take, and which of them were started."""
    limiter, started, turns = HandshakeLimiter(), list[int](), 0

    async def wait(number: int) -> None:
        with trio.CancelScope() as scope:
            if number < cancelled:
                scope.cancel()
            await limiter.wait()
            started.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(WAITING):
            nursery.start_soon(wait, number)
        while len(started) < WAITING - cancelled:
            await trio.lowlevel.checkpoint()
            turns += 1
            clock.jump(turn_seconds)
    return turns, sorted(started)


@pytest.mark.parametrize(("turn_seconds", "per_turn"), [(0, MIN_HANDSHAKES), (0.02, 10), (1, MAX_HANDSHAKES)])
async def test_longer_turns_start_more_handshakes(mock_clock: MockClock, turn_seconds: float, per_turn: int) -> None:
    turns, started = await pass_limiter(mock_clock, turn_seconds)
    assert WAITING / per_turn <= turns <= 2 * WAITING / per_turn + 6  # it may run only in every other turn
    assert started == list(range(WAITING))


async def test_cancelled_handshakes_do_not_delay_others(mock_clock: MockClock) -> None:
    _, started = await pass_limiter(mock_clock, 0, cancelled=WAITING // 2)
    assert started == list(range(WAITING // 2, WAITING))
