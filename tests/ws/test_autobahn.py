"""The Autobahn cases, run by kosoku against the listener, the WebSocket and its outbox, with an echo handler."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import trio
from progressd.broadcast.envelope import text_frame
from progressd.broadcast.outbox import MemoryBudget
from progressd.config.settings import Limits
from progressd.net.connection import Connection
from progressd.net.connection_log import ConnectionLog
from progressd.net.listener import Listener
from progressd.ws.websocket import Heartbeat, WebSocket
from support.waiting import PATIENCE
from trio_websocket import ConnectionClosed

CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]  # 9 is about speed, 12 and 13 are about compression
RUN = """
import asyncio, os, sys
import kosoku
async def main():
    try:
        results = await kosoku.run_fuzzingclient(sys.argv[2], sys.argv[3:], concurrency=int(sys.argv[1]))
    except kosoku.FailureError as error:
        results = error.results
    for result in results:
        print(result.case_id, result.behavior.value, result.behavior_close.value, flush=True)
    os._exit(0)  # on a usual exit kosoku's threads may abort
asyncio.run(main())
"""
LIMITS = Limits(max_message_bytes=1 << 20, send_buffer_bytes=64 << 20)


class SendBack:
    """A message sink that echoes each message."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def send(self, message: str | bytes, /) -> None:
        data = message.encode() if isinstance(message, str) else bytes(message)
        opcode = b"\x81" if isinstance(message, str) else b"\x82"
        self._websocket.outbox.write(opcode + text_frame(data)[1:])

    async def aclose(self) -> None:
        pass


async def echo(connection: Connection) -> None:
    try:
        async with trio.open_nursery() as nursery:
            websocket = WebSocket(connection, nursery, LIMITS, MemoryBudget(), Heartbeat(LIMITS))
            websocket.accept()
            await websocket.serve(SendBack(websocket))
            nursery.cancel_scope.cancel()
    except* ConnectionClosed:
        pass


async def no_http(connection: Connection) -> bool:
    raise NotImplementedError


async def test_the_autobahn_cases_pass(nursery: trio.Nursery, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        nursery.start_soon(Listener(echo, no_http, nursery, LIMITS, ConnectionLog()).run, listening)
        url = f"ws://127.0.0.1:{listening.getsockname()[1]}/ws/echo"
        verdicts = await verdicts_of(url, CASES)
        assert len(verdicts) > 200
        failed = [verdict for verdict in verdicts if is_bad(verdict)]
        for _ in range(5):
            if failed:
                again = await verdicts_of(url, [case for case, *_ in failed], at_once=1)
                failed = [verdict for verdict in again if is_bad(verdict)]
        assert failed == []
        nursery.cancel_scope.cancel()


def is_bad(verdict: Sequence[str]) -> bool:
    return not {"OK", "INFORMATIONAL"}.issuperset(verdict[1:])


async def verdicts_of(url: str, cases: Sequence[str], at_once: int = 4) -> list[list[str]]:
    """Return for each case its number and two verdicts: on the answers and on the close.

    A case waits only a second, so on a busy machine it may fail once. A defect fails every time.
    """
    with trio.fail_after(4 * PATIENCE):
        command = [sys.executable, "-c", RUN, str(at_once), url, *cases]
        done = await trio.run_process(command, capture_stdout=True)
    return [line.split() for line in done.stdout.decode().splitlines()]
