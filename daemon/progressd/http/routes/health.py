"""Health: whether the daemon responds, and whether it accepts work."""

import shutil

from msgspec import UNSET, Struct, UnsetType
from quart import Blueprint, Response

from progressd import __version__
from progressd.core.errors import StoreFailed, Unavailable
from progressd.http.context import json_response, request_context
from progressd.http.openapi import described
from progressd.http.schemas import JSON

blueprint = Blueprint("health", __name__, url_prefix="/api/health")


class PipelineDefaults(Struct, frozen=True):
    """The defaults of a pipeline's options."""

    options: dict[str, object]


class Health(Struct, frozen=True, kw_only=True):
    """The health of the daemon.

    `status` is `healthy`; `failing` while the store cannot save; or `degraded` when a job cannot be read, or when the
    files of all jobs have reached `limits.max_stored_bytes`. `error` is the reason. `tools` lists the programs that
    pipeline options need, and whether they are installed.
    """

    status: str
    version: str
    tools: dict[str, bool]
    pipelines: dict[str, PipelineDefaults]
    error: str | UnsetType = UNSET


class HealthState(Struct, frozen=True):
    """The status, and the reason if it is an error."""

    status: str
    error: str | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET  # seconds


@blueprint.get("")
@described(Health)
async def health() -> Response:
    """Return the health of the daemon, its version, and its pipelines with their required programs."""
    context = request_context()
    pipelines = context.app.settings.pipelines
    failing = _failing()
    trouble = failing or context.app.engine.store.unreadable or context.app.files.usage.full
    needs = {program for pipeline in pipelines.values() for program in pipeline.needs}
    return json_response(
        Health(
            status="failing" if failing else "degraded" if trouble else "healthy",
            version=__version__,
            tools={program: shutil.which(program) is not None for program in sorted(needs)},
            pipelines={
                name: PipelineDefaults(
                    {key: option.default for key, option in pipeline.options.items() if option.default is not None}
                )
                for name, pipeline in pipelines.items()
            },
            error=UNSET if trouble is None else str(trouble),
        )
    )


@blueprint.get("/live")
@described(HealthState)
async def live() -> Response:
    """Return 200 whenever the daemon responds."""
    return json_response(HealthState("live"))


@blueprint.get("/ready")
@described(HealthState, also={503: {JSON: HealthState}})
async def ready() -> Response:
    """Return 200 while the daemon accepts work; 503 while it starts or stops, or while the store fails."""
    failing = _failing()
    if failing is not None:
        return _not_ready("failing", failing)
    if request_context().app.ready:
        return json_response(HealthState("ready"))
    return _not_ready("stopping", Unavailable("the daemon accepts no work: it is starting or stopping"))


def _not_ready(status: str, error: Unavailable) -> Response:
    return json_response(HealthState(status, str(error), error.retry_after), 503, error.headers())


def _failing() -> StoreFailed | None:
    engine = request_context().app.engine
    return engine.store.damage or engine.ingest.health.failure
