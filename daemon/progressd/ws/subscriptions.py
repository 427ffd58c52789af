"""Requests on a socket with many topics: subscribe and unsubscribe, each with an answer."""

from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias

import msgspec
import trio
from msgspec import Meta, Struct

from progressd.broadcast.multiplex import Session
from progressd.core.close_codes import SLOW_CONSUMER, TRY_AGAIN
from progressd.core.errors import InvalidInput, NotFound, SlowConsumer, StoreFailed
from progressd.core.events import checked_batch_id, checked_job_id
from progressd.core.json import decode
from progressd.core.messages import (
    ALL_JOBS,
    Pong,
    Resync,
    Subscribed,
    SubscribeError,
    Unsubscribed,
    batch_topic,
    job_topic,
    log_topic,
)
from progressd.engine.history import History
from progressd.engine.log_reader import LogStart
from progressd.engine.view import ClientView
from progressd.ws.logs import LogSubscriptions
from progressd.ws.websocket import WebSocket

MAX_TOPICS: Final = 1000  # topics on one connection

Topics = Annotated[list[Annotated[str, Meta(max_length=100)]], Meta(min_length=1, max_length=1000)]


class Subscribe(Struct, frozen=True, tag_field="type", tag="subscribe"):
    """Send the messages of the topics; `since`: only messages after this cursor.

    `offset`, `tail`: where the logs among the topics begin.
    """

    topics: Topics
    since: Annotated[str, Meta(max_length=100)] | None = None
    offset: Annotated[int, Meta(ge=0, le=2**60)] | None = None
    tail: Annotated[int, Meta(ge=0, le=2**31)] | None = None


class Unsubscribe(Struct, frozen=True, tag_field="type", tag="unsubscribe"):
    """Stop sending the messages of the topics."""

    topics: Topics


class Ping(Struct, frozen=True, tag_field="type", tag="ping"):
    """Send a pong. Browsers need this request: they cannot send a WebSocket ping."""


Request: TypeAlias = Subscribe | Unsubscribe | Ping

decode_request = msgspec.json.Decoder(Request).decode


class SubscriptionCommands:
    """Process a client's requests, one after the other.

    `lock` is shared by all clients: a message can name 1000 topics, which takes some milliseconds. In each
    pass of the event loop, one client continues.
    """

    def __init__(
        self,
        websocket: WebSocket,
        session: Session,
        view: ClientView,
        history: History,
        lock: trio.Lock,
        logs: LogSubscriptions | None,
    ) -> None:
        """Serve one client. `logs`: None if it may not see any."""
        self._websocket = websocket
        self._session = session
        self._view = view
        self._history = history
        self._lock = lock
        self._logs = logs

    async def run(self, messages: trio.MemoryReceiveChannel[str | bytes]) -> None:
        """Run the commands in the messages until the channel is closed."""
        try:
            async for message in messages:
                async with self._lock:
                    pass
                await self._take(message)
        except StoreFailed:
            self._websocket.outbox.end(TRY_AGAIN)
        except SlowConsumer:
            self._websocket.outbox.end(SLOW_CONSUMER)

    async def _take(self, message: str | bytes) -> None:
        """Run one command and answer it. Raises StoreFailed."""
        try:
            text = message.encode() if isinstance(message, str) else message
            request = decode(decode_request, text, "a request")
        except InvalidInput as error:
            self._websocket.send(SubscribeError(str(error)))
            return
        match request:
            case Subscribe():
                await self._subscribe(request)
            case Unsubscribe():
                for topic in request.topics:
                    self._session.unsubscribe(topic.lower())
                    if self._logs is not None:
                        self._logs.unsubscribe(topic.lower())
                self._websocket.send(Unsubscribed(request.topics))
            case Ping():
                self._websocket.send(Pong())

    async def _subscribe(self, request: Subscribe) -> None:
        if request.offset is not None and request.tail is not None:
            self._websocket.send(SubscribeError("give only one of offset and tail"))
            return
        topics = list(dict.fromkeys(await self._accepted(request.topics)))
        if not topics:
            return
        after = None
        if request.since is not None:
            after = self._history.offset(request.since, self._session.newest_offset)
            if after is None:
                self._websocket.send(Resync())
        new = [topic for topic in topics if topic not in self._session.topics and not _is_log(topic)]
        logs = [topic for topic in topics if _is_log(topic)]

        def answer(upto: int) -> None:
            self._websocket.send(Subscribed(topics, self._history.cursor(upto)))

        try:
            await self._session.subscribe(new, after, self._websocket.drained, answer)
            for topic in logs:
                job = await self._view.job(topic.removeprefix(log_topic("")))
                assert self._logs is not None
                self._logs.subscribe(topic, job, LogStart(request.offset, request.tail))
        except NotFound as error:  # retention has deleted the job since `_accepted`
            self._websocket.send(SubscribeError(str(error)))

    async def _accepted(self, names: Iterable[str]) -> list[str]:
        """Return the valid topics, and send an error for each invalid topic. Raises StoreFailed."""
        checked, errors = dict[str, str](), list[SubscribeError]()
        for name in names:
            try:
                checked[name] = checked_topic(name)
            except (InvalidInput, NotFound) as error:
                errors.append(SubscribeError(str(error), name))
        existing = await self._view.existing({_topic_of_job(topic) for topic in checked.values()})
        open_logs = () if self._logs is None else self._logs.topics
        topics, room = list[str](), MAX_TOPICS - len(self._session.topics) - len(open_logs)
        for name, topic in checked.items():
            new = topic not in self._session.topics and topic not in open_logs
            if self._logs is None and _is_log(topic):
                errors.append(
                    SubscribeError("this watch token does not show logs: use a key, or a token with log=true", name)
                )
            elif _topic_of_job(topic) not in existing:
                errors.append(SubscribeError(f"no {topic.replace(':', ' ')}", name))
            elif new and room <= 0:
                errors.append(SubscribeError(f"a connection may have {MAX_TOPICS} topics", name))
            else:
                topics.append(topic)
                room -= new
        self._websocket.send(*errors)
        return topics


def checked_topic(text: str) -> str:
    """Return the topic in its canonical spelling. Raises NotFound, InvalidInput."""
    if text == ALL_JOBS:
        return text
    if text.startswith(job_topic("")):
        return job_topic(checked_job_id(text.removeprefix(job_topic(""))))
    if text.startswith(batch_topic("")):
        return batch_topic(checked_batch_id(text.removeprefix(batch_topic(""))))
    if text.startswith(log_topic("")):
        return log_topic(checked_job_id(text.removeprefix(log_topic(""))))
    raise NotFound(f"there is no topic {text!r}: topics are jobs, job:JOB_ID, log:JOB_ID and batch:BATCH_ID")


def _is_log(topic: str) -> bool:
    return topic.startswith(log_topic(""))


def _topic_of_job(topic: str) -> str:
    """Return the topic that has to exist: the topic of the job, for its log."""
    return job_topic(topic.removeprefix(log_topic(""))) if _is_log(topic) else topic
