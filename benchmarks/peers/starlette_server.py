"""The peer Starlette on uvicorn, with the usual loop over the connections. The Unix socket is named by EVENTS."""

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

watchers: defaultdict[str, list[WebSocket]] = defaultdict(list)


async def watch(websocket: WebSocket) -> None:
    topic = websocket.path_params.get("id", "jobs")
    await websocket.accept()
    watchers[topic].append(websocket)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        watchers[topic].remove(websocket)


async def produce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async for line in reader:
        text = line.decode().rstrip()
        for topic in (json.loads(text)["job_id"], "jobs"):
            for websocket in list(watchers[topic]):
                with suppress(WebSocketDisconnect):
                    await websocket.send_text(text)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with await asyncio.start_unix_server(produce, os.environ["EVENTS"]):
        yield


routes = [WebSocketRoute("/ws/jobs", watch), WebSocketRoute("/ws/jobs/{id}", watch)]
app = Starlette(routes=routes, lifespan=lifespan)
