"""Whether the daemon lives, and whether it takes work."""

import shutil

from quart import Blueprint, Response

from progressd import __version__
from progressd.core.errors import StoreFailed
from progressd.rest.services import json_response, services

blueprint = Blueprint("health", __name__, url_prefix="/api/health")


@blueprint.get("")
async def health() -> Response:
    """How the store is, the version, the pipelines' options, and which programs they can use are installed."""
    pipelines = services().settings.pipelines
    failing = _failing()
    needs = {program for pipeline in pipelines.values() for program in pipeline.needs}
    return json_response(
        {
            **({"status": "healthy"} if failing is None else {"status": "failing", "error": str(failing)}),
            "version": __version__,
            "tools": {program: shutil.which(program) is not None for program in sorted(needs)},
            "pipelines": {
                name: {"options": {key: option.default for key, option in pipeline.options.items()}}
                for name, pipeline in pipelines.items()
            },
        }
    )


@blueprint.get("/live")
async def live() -> Response:
    """200 as long as anything is answered."""
    return json_response({"status": "live"})


@blueprint.get("/ready")
async def ready() -> Response:
    """200 while work is taken, 503 while starting or stopping, or while the store keeps nothing."""
    failing = _failing()
    if failing is not None:
        return json_response({"status": "failing", "error": str(failing)}, 503)
    if services().ready:
        return json_response({"status": "ready"})
    return json_response({"status": "stopping"}, 503)


def _failing() -> StoreFailed | None:
    return services().store.damage or services().ingest.failing
