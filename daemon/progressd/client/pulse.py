"""The pulse of a connection: tells a daemon that has nothing to say from one that is gone; it never reconnects."""

from typing import Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

ANSWER_TIMEOUT: Final = 10.0  # seconds for a pong, and for the handshake before it


class Pulse:
    """Notices that a daemon is gone without a word: nothing came while we waited for it, not even a pong."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket
        self._waiting = False
        self._messages = 0

    async def receive(self) -> str | None:
        """The next text, or None when the connection is closed."""
        while True:
            self._waiting = True
            try:
                message = await self._websocket.get_message()
            except ConnectionClosed:
                return None
            self._waiting = False
            self._messages += 1
            if isinstance(message, str):
                return message

    async def check(self, interval: float, connection: trio.CancelScope) -> None:
        """Send a ping every `interval` seconds, and cancel the connection if that stays without any answer."""
        while True:
            await trio.sleep(interval)
            messages = self._messages
            with trio.move_on_after(min(interval, ANSWER_TIMEOUT)) as asking:
                try:
                    await self._websocket.ping()
                except ConnectionClosed:
                    return
            # while nobody takes the messages that came, the pong waits behind them
            if asking.cancelled_caught and self._waiting and self._messages == messages:
                connection.cancel()
