"""The peer `websockets`: its asyncio server and `broadcast()`, as its documentation shows. Arguments: PORT SOCKET."""

import asyncio
import json
import sys
from collections import defaultdict

from websockets.asyncio.server import ServerConnection, broadcast, serve

watchers: defaultdict[str, set[ServerConnection]] = defaultdict(set)


async def watch(connection: ServerConnection) -> None:
    assert connection.request is not None
    topic = connection.request.path.rpartition("/")[2]
    watchers[topic].add(connection)
    try:
        await connection.wait_closed()
    finally:
        watchers[topic].discard(connection)


async def produce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async for line in reader:
        text = line.decode().rstrip()
        broadcast(watchers[json.loads(text)["job_id"]], text)
        broadcast(watchers["jobs"], text)


async def main(port: int, socket: str) -> None:
    async with await asyncio.start_unix_server(produce, socket), serve(watch, "127.0.0.1", port):
        await asyncio.get_running_loop().create_future()


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
