"""`GET /api/pipelines`: the pipelines, the files that they accept, and their options as a JSON schema."""

import mimetypes
import shutil
import sys
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from quart import Blueprint, Response

from progressd.core.pipeline import MAX_TEXT, Option, Pipeline
from progressd.http.context import json_response, request_context
from progressd.http.openapi import described
from progressd.http.routes.submission import DEFAULT_PIPELINE
from progressd.system.printed_lines import PrintedLines

blueprint = Blueprint("pipelines", __name__)

_values = PrintedLines()


class PipelineView(Struct, frozen=True, kw_only=True):
    """A pipeline. `extensions`: the file name extensions of `accept`; empty for any. `schema`: of the options.

    In the schema, `examples` are values that this server offers for a text; others may be valid, too. `x-needs` is a
    program that the value true needs, and `x-available` whether it is installed. `default` is true for the pipeline of
    files submitted without a name of a pipeline.
    """

    name: str
    title: str
    description: str | UnsetType = UNSET
    accept: tuple[str, ...]
    extensions: list[str]
    schema: dict[str, Any]
    default: bool | UnsetType = UNSET


class Pipelines(Struct, frozen=True):
    """The pipelines, in the order of the config file."""

    pipelines: list[PipelineView]


@blueprint.get("/api/pipelines")
@described(Pipelines)
async def pipelines() -> Response:
    """Return the pipelines, with a JSON schema of their options."""
    known = request_context().app.settings.pipelines
    return json_response(Pipelines([await _view(name, pipeline) for name, pipeline in known.items()]))


async def _view(name: str, pipeline: Pipeline) -> PipelineView:
    properties = {key: await _schema(option) for key, option in pipeline.options.items()}
    extensions = {one for type_ in pipeline.accept for one in mimetypes.guess_all_extensions(type_, strict=False)}
    return PipelineView(
        name=name,
        title=pipeline.title or name,
        description=pipeline.description or UNSET,
        accept=pipeline.accept,
        extensions=[] if "*/*" in pipeline.accept else sorted(extensions),
        schema={"type": "object", "properties": properties},
        default=True if name == DEFAULT_PIPELINE else UNSET,
    )


async def _schema(option: Option) -> dict[str, Any]:
    """Return the JSON schema of an option."""
    schema: dict[str, Any] = {"type": option.type}
    given = {
        "title": option.title or None,
        "description": option.description or None,
        "default": option.default,
        "minimum": option.minimum,
        "maximum": option.maximum,
        "enum": list(option.choices) or None,
        "maxLength": MAX_TEXT if option.type == "string" and not option.choices else None,
    }
    schema |= {key: value for key, value in given.items() if value is not None}
    if option.values_command and (
        values := await _values.of([part.replace("{python}", sys.executable) for part in option.values_command])
    ):
        schema["examples"] = values
    if option.needs is not None:
        schema |= {"x-needs": option.needs, "x-available": shutil.which(option.needs) is not None}
    return schema
