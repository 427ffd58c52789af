"""The peer trio-websocket: a memory channel and a task with `send_message` for each watcher. Arguments: PORT SOCKET."""

import json
import sys
from collections import defaultdict

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

WAITING = 1000  # messages that may wait for a watcher before the producer has to
watchers: defaultdict[str, set[trio.MemorySendChannel[str]]] = defaultdict(set)


async def watch(request: WebSocketRequest) -> None:
    topic = request.path.rpartition("/")[2]
    send, receive = trio.open_memory_channel[str](WAITING)
    ws = await request.accept()
    watchers[topic].add(send)
    try:
        async for text in receive:
            await ws.send_message(text)
    except ConnectionClosed:
        pass
    finally:
        watchers[topic].discard(send)


async def produce(stream: trio.SocketStream) -> None:
    rest = b""
    async for chunk in stream:
        *lines, rest = (rest + bytes(chunk)).split(b"\n")
        for line in lines:
            text = line.decode()
            for topic in (json.loads(text)["job_id"], "jobs"):
                for send in list(watchers[topic]):
                    await send.send(text)


async def main(port: int, path: str) -> None:
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(path)
    sock.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, produce, [trio.SocketListener(sock)])
        nursery.start_soon(serve_websocket, watch, "127.0.0.1", port, None)


trio.run(main, int(sys.argv[1]), sys.argv[2])
