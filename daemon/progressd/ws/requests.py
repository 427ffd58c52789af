"""What a client asks for on a socket of many topics."""

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from progressd.core.errors import NotFound
from progressd.core.events import checked_batch_id, checked_job_id
from progressd.core.messages import ALL_JOBS, batch_topic, job_topic

Topics = Annotated[list[Annotated[str, Meta(max_length=100)]], Meta(min_length=1, max_length=1000)]


class Subscribe(Struct, frozen=True, tag_field="type", tag="subscribe"):
    """Send what comes on the topics; `since`, a cursor, only asks for what was after it."""

    topics: Topics
    since: Annotated[str, Meta(max_length=100)] | None = None


class Unsubscribe(Struct, frozen=True, tag_field="type", tag="unsubscribe"):
    """Send it no more."""

    topics: Topics


class Ping(Struct, frozen=True, tag_field="type", tag="ping"):
    """Are you there? For browsers, which cannot send a WebSocket ping."""


Request: TypeAlias = Subscribe | Unsubscribe | Ping

decode_request = msgspec.json.Decoder(Request).decode


def checked_topic(text: str) -> str:
    """The topic in its one spelling. Raises NotFound, InvalidInput."""
    if text == ALL_JOBS:
        return text
    if text.startswith(job_topic("")):
        return job_topic(checked_job_id(text.removeprefix(job_topic(""))))
    if text.startswith(batch_topic("")):
        return batch_topic(checked_batch_id(text.removeprefix(batch_topic(""))))
    raise NotFound(f"there is no topic {text!r}: topics are jobs, job:JOB_ID and batch:BATCH_ID")
