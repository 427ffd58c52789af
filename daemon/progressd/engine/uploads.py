"""Turn complete resumable uploads into jobs: each exactly once, even if the daemon is killed in between."""

from typing import Final

import structlog
import trio

from progressd.core.errors import ProgressdError, StoreFailed
from progressd.core.events import Registration, SubmitEvent
from progressd.engine.ingest import Ingest
from progressd.engine.registry import Registry
from progressd.files.job_files import JobFiles
from progressd.files.resumable import ResumableUpload

INTERVAL: Final = 60.0  # seconds between two attempts to create missing jobs, and to delete expired uploads

log = structlog.get_logger(__name__)


class UploadedJobs:
    """Create the jobs of complete uploads."""

    def __init__(self, ingest: Ingest, registry: Registry, files: JobFiles) -> None:
        self._ingest = ingest
        self._registry = registry
        self._files = files

    async def create(self, upload: ResumableUpload) -> None:
        """Create the job of a complete upload, unless that has happened.

        A client that disconnects does not interrupt this. Raises InsufficientStorage, StoreFailed, Unavailable.
        """
        with trio.CancelScope(shield=True):
            async with upload.creating:
                if upload.done or self._files.resumable.find(upload.info.id) is None:  # deleted in the meantime
                    return
                if upload.info.id in await self._registry.find([upload.info.id]):  # the daemon was killed after this
                    self._files.resumable.release(upload)
                else:
                    await self._submit(upload)
                await self._files.resumable.finish(upload)

    async def _submit(self, upload: ResumableUpload) -> None:
        info, uploads = upload.info, self._files.resumable
        registration = Registration(info.pipeline, info.filename[:255], options=info.options, labels=info.labels)
        event = SubmitEvent(
            info.id,
            registration,
            info.pipeline,
            info.batch_id,
            info.priority,
            owner=info.owner,
            batch_name=info.batch_name,
        )
        async with self._files.upload(info.id) as target:
            await target.replace_with(upload.path)
            uploads.release(upload)  # no checkpoint in between, so that the bytes are not counted twice
            try:
                await self._ingest.submit_one(event)
            except BaseException:
                uploads.count(upload)
                raise

    async def run(self) -> None:
        """Create the jobs that are missing after a crash or a failure, and delete expired uploads, until cancelled."""
        while True:
            for upload in self._files.resumable.all():
                if upload.whole and not upload.done:
                    try:
                        await self.create(upload)
                    except (ProgressdError, OSError) as error:
                        log.warning("uploaded file is no job yet, will retry", job_id=upload.info.id, error=str(error))
                        if isinstance(error, StoreFailed):
                            break
            try:
                await self._files.resumable.expire()
            except OSError as error:
                log.error("cannot delete expired uploads, will retry", error=str(error))
            await trio.sleep(INTERVAL)
