"""The newest preview of each page, in memory, so that a page that is opened later shows them too.

Previews are not stored: after a restart there are none until the producers send new ones.
"""

import binascii
from base64 import b64decode
from collections.abc import Iterable
from typing import Final, NamedTuple

from progressd.core.messages import PagePreviewData

MAX_JOB_BYTES: Final = 2 << 20  # of the previews of one job; the oldest are dropped
MAX_BYTES: Final = 32 << 20  # of all previews; those of the job that was quiet for longest are dropped
OVERHEAD: Final = 300  # bytes of memory for each preview, besides its picture

_TYPES: Final = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n": "image/png",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}


class Preview(NamedTuple):
    """A picture of a page. `number`: counts all previews, so it changes with the picture."""

    number: int
    page_number: int
    stage: str
    width: int
    height: int
    picture: bytes

    @property
    def media_type(self) -> str:
        """Return the type of the picture, by its first bytes."""
        found = (name for magic, name in _TYPES.items() if self.picture.startswith(magic))
        return next(found, "application/octet-stream")


class Previews:
    """The previews of all jobs. Only ingest adds some."""

    def __init__(self) -> None:
        self.bytes = 0
        self._jobs = dict[str, dict[int, Preview]]()  # both sorted by time, the oldest first
        self._sizes = dict[str, int]()
        self._count = 0

    def keep(self, previews: Iterable[tuple[str, PagePreviewData]]) -> None:
        """Keep new previews, each with the id of its job. A picture that is not base64 is ignored."""
        for job_id, data in previews:
            try:
                picture = b64decode(data.preview_base64, validate=True)
            except binascii.Error:
                continue
            if len(picture) > MAX_JOB_BYTES - OVERHEAD:
                continue
            self._count += 1
            pages = self._jobs.pop(job_id, {})
            self._jobs[job_id] = pages
            self._drop(job_id, data.page_number)
            pages[data.page_number] = Preview(
                self._count, data.page_number, data.stage, data.width, data.height, picture
            )
            self._add(job_id, len(picture) + OVERHEAD)
            while self._sizes[job_id] > MAX_JOB_BYTES:
                self._drop(job_id, next(iter(pages)))
        while self.bytes > MAX_BYTES:
            self.forget(next(iter(self._jobs)))

    def of(self, job_id: str) -> list[Preview]:
        """Return the previews of a job, in order of their pages."""
        return [preview for _, preview in sorted(self._jobs.get(job_id, {}).items())]

    def find(self, job_id: str, page_number: int) -> Preview | None:
        """Return the newest preview of a page."""
        return self._jobs.get(job_id, {}).get(page_number)

    def forget(self, job_id: str) -> None:
        """Drop the previews of a job."""
        if self._jobs.pop(job_id, None) is not None:
            self.bytes -= self._sizes.pop(job_id)

    def _drop(self, job_id: str, page: int) -> None:
        preview = self._jobs[job_id].pop(page, None)
        if preview is not None:
            self._add(job_id, -len(preview.picture) - OVERHEAD)

    def _add(self, job_id: str, size: int) -> None:
        self._sizes[job_id] = self._sizes.get(job_id, 0) + size
        self.bytes += size
