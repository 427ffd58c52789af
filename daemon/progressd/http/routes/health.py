"""Whether the daemon lives, and whether it takes work."""

import shutil

from msgspec import UNSET
from quart import Blueprint, Response

from progressd import __version__
from progressd.core.errors import StoreFailed, Unavailable
from progressd.http.context import json_response, services
from progressd.http.openapi.operations import JSON, described
from progressd.http.schemas.responses import Health, HealthState, PipelineDefaults

blueprint = Blueprint("health", __name__, url_prefix="/api/health")


@blueprint.get("")
@described(Health)
async def health() -> Response:
    """How the store is, the version, the pipelines' options, and which programs they can use are installed."""
    pipelines = services().settings.pipelines
    failing = _failing()
    trouble = failing or services().store.unreadable or services().files.stored.full
    needs = {program for pipeline in pipelines.values() for program in pipeline.needs}
    return json_response(
        Health(
            status="failing" if failing else "degraded" if trouble else "healthy",
            version=__version__,
            tools={program: shutil.which(program) is not None for program in sorted(needs)},
            pipelines={
                name: PipelineDefaults({key: option.default for key, option in pipeline.options.items()})
                for name, pipeline in pipelines.items()
            },
            error=UNSET if trouble is None else str(trouble),
        )
    )


@blueprint.get("/live")
@described(HealthState)
async def live() -> Response:
    """200 as long as anything is answered."""
    return json_response(HealthState("live"))


@blueprint.get("/ready")
@described(HealthState, also={503: {JSON: HealthState}})
async def ready() -> Response:
    """200 while work is taken, 503 while starting or stopping, or while the store keeps nothing."""
    failing = _failing()
    if failing is not None:
        return _not_ready("failing", failing)
    if services().ready:
        return json_response(HealthState("ready"))
    return _not_ready("stopping", Unavailable("the daemon takes no work: it starts or stops"))


def _not_ready(status: str, error: Unavailable) -> Response:
    return json_response(HealthState(status, str(error), error.retry_after), 503, error.headers())


def _failing() -> StoreFailed | None:
    return services().store.damage or services().ingest.health.failure
