"""`GET /api/metrics`: what the daemon does, as text for Prometheus."""

from typing import Final

from prometheus_client.exposition import choose_encoder
from quart import Blueprint, Response, request

from progressd.core.errors import OutOfScope
from progressd.http.context import services
from progressd.http.middleware.access import who_asks
from progressd.http.openapi.operations import described

TEXT: Final = {"type": "string"}

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/api/metrics")
@described(also={200: {"text/plain": TEXT, "application/openmetrics-text": TEXT}})
async def metrics() -> Response:
    """In the format that the client asks for, and without that in Prometheus' own."""
    if who_asks(request.scope).bound:
        raise OutOfScope("the metrics are about all jobs, and this key is for some only")
    try:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    except (TypeError, ValueError):  # prometheus_client fails at a version such as 1.x
        encode, content_type = choose_encoder("")
    return Response(encode(services().collector.registry), headers={"Vary": "Accept"}, content_type=content_type)
