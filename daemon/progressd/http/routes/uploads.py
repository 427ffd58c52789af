"""Resumable uploads, with the protocol tus 1.0 (https://tus.io/protocols/resumable-upload).

The extensions are creation, creation-with-upload, termination, expiration and checksum. When the last byte has arrived,
the upload becomes a job with the same id.
"""

import base64
import binascii
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final

import trio
from msgspec import UNSET, Struct, UnsetType
from quart import Blueprint, Response, request

from progressd.core.errors import (
    ChecksumMismatch,
    Conflict,
    Gone,
    InvalidInput,
    Locked,
    NotFound,
    PreconditionFailed,
    ProgressdError,
    TooLarge,
    TooManyUploads,
    UnsupportedMedia,
    readable_size,
)
from progressd.core.events import checked_job_id
from progressd.files.resumable import HEAD, ResumableUpload, UploadInfo
from progressd.http.body import BodyChunks
from progressd.http.context import Reception, RequestContext, json_response, request_context
from progressd.http.openapi import described
from progressd.http.routes.submission import (
    DEFAULT_PIPELINE,
    SUBMISSION_ERRORS,
    checked,
    checked_batch_name,
    has_signature,
    id_of,
    pipeline_named,
    read_fields,
    require_ready,
    require_type,
    uploading,
)

VERSION: Final = "1.0.0"
TUS: Final = {"Tus-Resumable": VERSION}
EXTENSIONS: Final = "creation,creation-with-upload,termination,expiration,checksum"
OCTETS: Final = "application/offset+octet-stream"
ALGORITHMS: Final[Mapping[str, Callable[[], Any]]] = {
    "sha256": hashlib.sha256,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
}
MAX_METADATA: Final = 16384  # characters
MAX_BATCH: Final = 100  # files, as in POST /api/batch
MAX_UNFINISHED: Final = 1000  # uploads of one client
MAX_UNFINISHED_TOTAL: Final = 10_000
SILENCE: Final = 1.0  # seconds without data after which another request can take over an upload
LOCK_TIMEOUT: Final = 2.0  # seconds that a request waits for another one that adds to the same upload
BODY: Final = {OCTETS: {"type": "string", "format": "binary"}}

blueprint = Blueprint("uploads", __name__, url_prefix="/api/uploads")


class UploadView(Struct, frozen=True, kw_only=True):
    """A resumable upload. `job_id` is present once the upload has become a job."""

    id: str
    filename: str
    length: int
    offset: int
    expires_at: datetime
    job_id: str | UnsetType = UNSET
    batch_id: str | UnsetType = UNSET


@blueprint.after_request
async def _versioned(response: Response) -> Response:
    response.headers.update(TUS)
    if response.status_code == 412:
        response.headers["Tus-Version"] = VERSION
    return response


@blueprint.route("", methods=["OPTIONS"], provide_automatic_options=False)
@blueprint.route("/<upload_id>", methods=["OPTIONS"], provide_automatic_options=False)
async def capabilities(upload_id: str = "") -> Response:
    """Return the version, the extensions and the limits, in the headers."""
    headers = {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(request_context().app.settings.limits.max_upload_bytes),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        "Allow": "OPTIONS, POST" if not upload_id else "OPTIONS, GET, HEAD, PATCH, DELETE",
    }
    return _empty(204, headers)


@blueprint.post("")
@described(
    status=201,
    also={201: {}},
    errors=(*SUBMISSION_ERRORS, 412, 460),
    headers=("Upload-Length", "Upload-Metadata", "Upload-Checksum", "Tus-Resumable"),
    body=BODY,
    body_required=False,
)
async def create() -> Response:
    """Create a resumable upload, whose URL is in `Location`. The body may have its first bytes.

    `Upload-Metadata` has pairs of a key and a value in base64: `filename`, `filetype`, `pipeline`, `options` and
    `labels` (JSON), `batch` (uploads with the same text become one batch) and `batch_name`.
    """
    _require_version()
    require_ready()
    context = request_context()
    info, filetype = await _requested(context)
    given = request.mimetype == OCTETS
    checksum = _checksum() if given else None
    body = BodyChunks(request, context.app.settings.limits, info.length) if given else None
    _require_room(context, info)
    upload = await context.app.files.resumable.create(info)
    if body is not None:
        try:
            with uploading(body):
                async with _held(upload, body):
                    await _receive(context, upload, body, checksum, filetype)
        except BaseException:  # the client does not know the URL
            if not upload.done:
                await context.app.files.resumable.remove(upload)
            raise
    url = context.app.base.url(f"/api/uploads/{upload.info.id}")
    return _empty(201, {"Location": url, **_state(context, upload)})


@blueprint.get("/<upload_id>")
@described(UploadView, errors=(410, 412, 423))
async def state(upload_id: str) -> Response:
    """Return an upload. The headers have its offset; HEAD is enough for them."""
    if request.method == "HEAD":
        _require_version()
    context, upload = _find(upload_id)
    async with _held(upload):
        await _create_job(context, upload)
        headers = {
            "Upload-Length": str(upload.info.length),
            "Upload-Metadata": upload.info.metadata,
            "Cache-Control": "no-store",
            **_state(context, upload),
        }
        view = UploadView(
            id=upload.info.id,
            filename=upload.info.filename,
            length=upload.info.length,
            offset=upload.offset,
            expires_at=_expiry(context, upload),
            job_id=upload.info.id if upload.done else UNSET,
            batch_id=upload.info.batch_id or UNSET,
        )
    return json_response(view, headers=headers) if request.method == "GET" else _empty(200, headers)


@blueprint.patch("/<upload_id>")
@described(
    status=204,
    also={204: {}},
    errors=(408, 409, 410, 412, 413, 415, 423, 460, 507),
    headers=("Upload-Offset", "Upload-Checksum", "Tus-Resumable"),
    body=BODY,
)
async def append(upload_id: str) -> Response:
    """Add bytes at `Upload-Offset`, which must be the offset of the upload. The last byte creates the job."""
    _require_version()
    require_ready()
    if request.mimetype != OCTETS:
        raise UnsupportedMedia(f"the body of a PATCH has the type {OCTETS}")
    offset, checksum = _number("Upload-Offset"), _checksum()
    context, upload = _find(upload_id)
    if offset > upload.info.length:
        raise Conflict(f"the upload has {upload.info.length} bytes: there is no offset {offset}")
    body = BodyChunks(request, context.app.settings.limits, upload.info.length - offset)
    with uploading(body):
        async with _held(upload, body):
            if offset != upload.offset:
                raise Conflict(f"the upload continues at the offset {upload.offset}, not at {offset}")
            if not upload.done:
                await _receive(context, upload, body, checksum, _metadata(upload.info.metadata).get("filetype", ""))
    return _empty(204, _state(context, upload))


@blueprint.delete("/<upload_id>")
@described(status=204, also={204: {}}, errors=(410, 412, 423, 507), headers=("Tus-Resumable",))
async def terminate(upload_id: str) -> Response:
    """Delete an upload and its bytes. If it has become a job, the job stays."""
    _require_version()
    context, upload = _find(upload_id)
    holder = context.app.receiving.get(upload.info.id)
    if holder is not None and holder.body is not None:
        holder.scope.cancel()
    async with _held(upload), upload.creating:  # the daemon may be creating its job, after an earlier failure
        await context.app.files.resumable.remove(upload)
    return _empty(204)


@blueprint.post("/<upload_id>")
@described(
    status=204,
    also={204: {}},
    errors=(408, 409, 410, 412, 413, 415, 423, 460, 507),
    headers=("X-HTTP-Method-Override", "Upload-Offset", "Upload-Checksum", "Tus-Resumable"),
    body=BODY,
    body_required=False,
)
async def override(upload_id: str) -> Response:
    """Serve a client behind a proxy that allows neither PATCH nor DELETE."""
    match request.headers.get("X-HTTP-Method-Override", "").upper():
        case "PATCH":
            return await append(upload_id)
        case "DELETE":
            return await terminate(upload_id)
    raise InvalidInput("to add bytes, send a PATCH, or a POST with X-HTTP-Method-Override: PATCH")


def _empty(status: int, headers: dict[str, str] | None = None) -> Response:
    response = Response(b"", status, headers)
    del response.headers["Content-Type"]
    if status == 204:
        del response.headers["Content-Length"]
    return response


def _require_version() -> None:
    if request.headers.get("Tus-Resumable") != VERSION:
        raise PreconditionFailed(f"the header Tus-Resumable is missing or not {VERSION}, the supported version")


def _number(name: str) -> int:
    """Return a header that is a number. Raises InvalidInput."""
    text = request.headers.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise InvalidInput(f"the header {name} is missing, or not a number of bytes")
    return int(text)


class _Checksum:
    """The announced checksum of a body, and the checksum of what has arrived."""

    def __init__(self, algorithm: str, expected: bytes) -> None:
        self._expected = expected
        self._actual = ALGORITHMS[algorithm]()

    def update(self, data: bytes) -> None:
        self._actual.update(data)

    def require(self) -> None:
        if self._actual.digest() != self._expected:
            raise ChecksumMismatch("the body does not have the checksum in Upload-Checksum: send it again")


def _checksum() -> _Checksum | None:
    """Return the checksum that the client announces. Raises InvalidInput."""
    text = request.headers.get("Upload-Checksum")
    if text is None:
        return None
    algorithm, _, digest = text.partition(" ")
    if algorithm not in ALGORITHMS:
        raise InvalidInput(f"Upload-Checksum: the algorithm is not one of {', '.join(ALGORITHMS)}")
    try:
        return _Checksum(algorithm, base64.b64decode(digest, validate=True))
    except binascii.Error:
        raise InvalidInput("Upload-Checksum: the checksum is not valid base64") from None


def _metadata(header: str) -> dict[str, str]:
    """Return the pairs of Upload-Metadata. Raises InvalidInput."""
    if len(header) > MAX_METADATA:
        raise InvalidInput(f"Upload-Metadata is longer than {MAX_METADATA} characters")
    pairs = dict[str, str]()
    for pair in header.split(",") if header.strip() else []:
        key, _, value = pair.strip().partition(" ")
        try:
            text = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidInput(f"Upload-Metadata: the value of {key[:60]!r} is not UTF-8 text in base64") from None
        if not key or key in pairs:
            raise InvalidInput("Upload-Metadata: a key is empty, or occurs twice")
        pairs[key] = text
    return pairs


async def _requested(context: RequestContext) -> tuple[UploadInfo, str]:
    """Return the upload that the client wants to create, and the type of the file according to the client."""
    if "Upload-Defer-Length" in request.headers:
        raise InvalidInput("Upload-Defer-Length is not supported: send the size of the file in Upload-Length")
    length = _number("Upload-Length")
    header = request.headers.get("Upload-Metadata", "")
    metadata = _metadata(header)
    filename = metadata.get("filename") or metadata.get("name") or ""
    filetype = metadata.get("filetype") or metadata.get("type") or ""
    name = metadata.get("pipeline", DEFAULT_PIPELINE)
    pipeline = pipeline_named(name)
    limit = context.app.settings.limits.max_upload_bytes
    if length > limit:
        raise TooLarge(f"the file is larger than {readable_size(limit)}, the limit")
    if not length or not has_signature(pipeline):
        require_type(b"" if not length else b" ", filename, pipeline, filetype)
        if not length:
            raise UnsupportedMedia("the file is empty")
    given, labels = read_fields(metadata)
    options, priority = checked(pipeline, given)
    batch, batch_name = metadata.get("batch", ""), checked_batch_name(metadata.get("batch_name", ""))
    info = UploadInfo(
        id=str(uuid.uuid4()),
        length=length,
        metadata=header,
        filename=filename,
        pipeline=name,
        options=options,
        labels={**labels, **context.view.labels},
        priority=priority,
        batch_id=id_of(f"uploads {batch}") if batch else None,
        batch_name=batch_name if batch else "",
        owner=context.owner,
        key=context.client.identity.key,
    )
    if info.batch_id is not None:
        await _require_batch(context, info.batch_id)
    return info, filetype


async def _require_batch(context: RequestContext, batch_id: str) -> None:
    """Check that a batch can have one more file. Raises TooLarge."""
    known = await context.app.engine.batches.find(batch_id)
    uploads = context.app.files.resumable.all()
    waiting = sum(upload.info.batch_id == batch_id and not upload.done for upload in uploads)
    if waiting + (known.total if known else 0) >= MAX_BATCH:
        raise TooLarge(f"the batch has too many files: send at most {MAX_BATCH} together")


def _require_room(context: RequestContext, info: UploadInfo) -> None:
    """Check that the client may have one more unfinished upload. Raises TooManyUploads."""
    unfinished = [upload for upload in context.app.files.resumable.all() if not upload.done]
    own = sum((upload.info.owner, upload.info.key) == (info.owner, info.key) for upload in unfinished)
    if own >= MAX_UNFINISHED:
        raise TooManyUploads(f"this client already has {MAX_UNFINISHED} unfinished uploads: continue or delete them")
    if len(unfinished) >= MAX_UNFINISHED_TOTAL:
        raise TooManyUploads(f"there are already {MAX_UNFINISHED_TOTAL} unfinished uploads")


def _find(text: str) -> tuple[RequestContext, ResumableUpload]:
    """Return an upload of this client. Raises NotFound, Gone."""
    context = request_context()
    upload = context.app.files.resumable.find(checked_job_id(text))
    if upload is None or upload.info.key != context.client.identity.key:
        raise NotFound(f"no upload {text[:60]}: it has expired, was deleted, or belongs to another key")
    if upload.offset < upload.info.length and context.app.files.resumable.expires_at(upload) <= time.time():
        raise Gone(f"the upload {text[:60]} has expired: send the file again")
    return context, upload


@asynccontextmanager
async def _held(upload: ResumableUpload, body: BodyChunks | None = None) -> AsyncIterator[None]:
    """Hold an upload inside the block, which adds the bytes of `body`.

    A client that lost its connection returns before the daemon has noticed that. So a request that has received nothing
    for a second is cancelled for a new one. Raises Locked if another request is adding bytes, and Conflict in the block
    of the cancelled request.
    """
    receiving, id_ = request_context().app.receiving, upload.info.id
    until = trio.current_time() + LOCK_TIMEOUT
    while (other := receiving.get(id_)) is not None:
        if other.body is not None and other.body.behind() >= SILENCE:
            other.scope.cancel()
        if trio.current_time() >= until:
            raise Locked("another request is adding to this upload: try again later")
        with trio.move_on_after(0.1):
            await other.ended.wait()
    reception = Reception(body, trio.CancelScope(), trio.Event())
    receiving[id_] = reception
    try:
        with reception.scope:
            yield
    finally:
        del receiving[id_]
        reception.ended.set()
    if reception.scope.cancelled_caught:
        raise Conflict("another request has taken over this upload")


async def _receive(
    context: RequestContext, upload: ResumableUpload, body: BodyChunks, checksum: _Checksum | None, filetype: str
) -> None:
    """Add the bytes of a request. If these were the last, create the job."""
    uploads, pipeline = context.app.files.resumable, pipeline_named(upload.info.pipeline)
    try:
        async with uploads.writing(upload, unverified=checksum is not None) as writer:
            head = upload.head if upload.offset < HEAD else b" " * HEAD
            is_checked = len(head) == HEAD
            async for piece in body:
                await writer.write(piece)
                if checksum is not None:
                    checksum.update(piece)
                if not is_checked:
                    head += piece[: HEAD - len(head)]
                    is_checked = len(head) == HEAD or writer.size == upload.info.length
                    if is_checked:
                        require_type(head, upload.info.filename, pipeline, filetype)
            if checksum is not None:
                checksum.require()
                writer.verified = True
    except UnsupportedMedia:
        await uploads.remove(upload)
        raise
    except trio.Cancelled:  # the client has disconnected, perhaps after the last byte
        with suppress(ProgressdError, OSError):  # the daemon retries
            await _create_job(context, upload)
        raise
    await _create_job(context, upload)


async def _create_job(context: RequestContext, upload: ResumableUpload) -> None:
    if upload.whole and not upload.done:
        await context.app.uploaded_jobs.create(upload)


def _expiry(context: RequestContext, upload: ResumableUpload) -> datetime:
    return datetime.fromtimestamp(context.app.files.resumable.expires_at(upload), UTC).replace(microsecond=0)


def _state(context: RequestContext, upload: ResumableUpload) -> dict[str, str]:
    """Return the headers about the progress of an upload."""
    headers = {
        "Upload-Offset": str(upload.offset),
        "Upload-Expires": format_datetime(_expiry(context, upload), usegmt=True),
    }
    if upload.done:
        headers["Progressd-Job-Id"] = upload.info.id
    if upload.info.batch_id is not None:
        headers["Progressd-Batch-Id"] = upload.info.batch_id
    return headers
