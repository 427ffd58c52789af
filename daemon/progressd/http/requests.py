"""What requests may ask for in their query, or bring in their body."""

from typing import Annotated

from msgspec import Meta, Struct

from progressd.core.events import Registration
from progressd.core.status import JobStatus


class NewJob(Registration, frozen=True):
    """The body of `POST /api/jobs`."""

    id: str | None = None


class PageQuery(Struct, frozen=True):
    """The query of a list; a larger limit than 1000 is taken for 1000."""

    limit: Annotated[int, Meta(ge=1)] = 50
    offset: Annotated[int, Meta(ge=0, le=2**53)] = 0
    status: JobStatus | None = None
    kind: str | None = None
    label: Annotated[str, Meta(pattern="^[^=]+=")] | None = None


class LongPollQuery(Struct, frozen=True):
    """The query of a single job: wait, but at most so many seconds, until it is newer than the cursor `since`."""

    since: str | None = None
    wait: Annotated[float, Meta(ge=0)] = 0


class DeleteQuery(Struct, frozen=True):
    """The query of a deletion: without `purge` it is a cancellation."""

    purge: bool = False


class PipelineChoice(Struct, frozen=True):
    """The query of a submission."""

    pipeline: str = "pdf"
