"""The requests of a client on a socket with many topics."""

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from progressd.core.errors import NotFound
from progressd.core.events import checked_batch_id, checked_job_id
from progressd.core.messages import ALL_JOBS, batch_topic, job_topic

Topics = Annotated[list[Annotated[str, Meta(max_length=100)]], Meta(min_length=1, max_length=1000)]


class Subscribe(Struct, frozen=True, tag_field="type", tag="subscribe"):
    """Send the messages of the topics; `since`: only messages after this cursor."""

    topics: Topics
    since: Annotated[str, Meta(max_length=100)] | None = None


class Unsubscribe(Struct, frozen=True, tag_field="type", tag="unsubscribe"):
    """Stop sending the messages of the topics."""

    topics: Topics


class Ping(Struct, frozen=True, tag_field="type", tag="ping"):
    """Send a pong. Browsers need this request: they cannot send a WebSocket ping."""


Request: TypeAlias = Subscribe | Unsubscribe | Ping

decode_request = msgspec.json.Decoder(Request).decode


def checked_topic(text: str) -> str:
    """Return the topic in its canonical spelling. Raises NotFound, InvalidInput."""
    if text == ALL_JOBS:
        return text
    if text.startswith(job_topic("")):
        return job_topic(checked_job_id(text.removeprefix(job_topic(""))))
    if text.startswith(batch_topic("")):
        return batch_topic(checked_batch_id(text.removeprefix(batch_topic(""))))
    raise NotFound(f"there is no topic {text!r}: topics are jobs, job:JOB_ID and batch:BATCH_ID")
