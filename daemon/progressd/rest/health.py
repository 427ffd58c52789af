"""Whether the daemon lives, and whether it takes work."""

import shutil

from quart import Blueprint, Response

from progressd import __version__
from progressd.rest.services import json_response, services

blueprint = Blueprint("health", __name__, url_prefix="/api/health")


@blueprint.get("")
async def health() -> Response:
    """The version, the pipelines with the defaults of their options, and which programs they can use are installed."""
    pipelines = services().settings.pipelines
    needs = {program for pipeline in pipelines.values() for program in pipeline.needs}
    return json_response(
        {
            "status": "healthy",
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
    """200 while work is taken, 503 while starting or stopping."""
    if services().ready:
        return json_response({"status": "ready"})
    return json_response({"status": "stopping"}, 503)
