"""The OpenAPI document is complete and valid, and the daemon conforms to it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from progressd.http.app import build_app
from progressd.http.openapi import COMMON_ERRORS, ID
from support.contract import ROWS
from support.daemon import PATIENCE, running_daemon
from support.http_client import client_of
from support.serving import served_daemon

STREAMS = (
    "streams.all_events",
    "streams.job_events",
    "streams.batch_events",
    "log.job_log",
    "log.job_log_events",
)  # endless
TUS = ("uploads.create", "uploads.append", "uploads.override")  # a body that schemathesis cannot generate
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.get("/api/openapi.json")
    assert response.status_code == 200
    document: dict[str, Any] = response.json()
    return document


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the operations by method and path: `GET /api/jobs/{}`."""
    return {
        f"{method.upper()} {re.sub('{.*?}', '{}', path)}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


async def test_the_document_has_every_route(document: dict[str, Any]) -> None:
    routes = {
        f"{method} {re.sub('<.*?>', '{}', rule.rule)}"
        for rule in build_app().url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith(("/api", "/ping", "/badge"))
    }
    assert routes == operations(document).keys()


async def test_the_document_has_every_field_of_the_contract(document: dict[str, Any]) -> None:
    described = operations(document)
    for row in ROWS:
        method, _, target = row.request.partition(" ")
        path = re.sub(
            r"[0-9a-f]{8}-[0-9a-f-]{27}|/me\b|BATCH|CANCELLED", lambda found: "/{}" if "/" in found[0] else "{}", target
        )
        name = f"{method} {path.partition('?')[0]}"
        if row.status == 405:
            assert name not in described
            continue
        answer = described[name]["responses"][str(row.status)]
        schema = answer["content"]["application/json"]["schema"]
        for field in row.fields.split():
            assert "properties" in within(document, schema, field), (name, field)


def within(document: dict[str, Any], schema: dict[str, Any], field: str) -> dict[str, Any]:
    """Return the schema that has the last name of a dotted field as a property."""
    found: dict[str, Any] = {}
    for name in field.split("."):
        schema = resolved(document, schema)
        schema = resolved(document, schema.get("items", schema))
        if name not in schema.get("properties", {}):
            return {}
        found, schema = schema, schema["properties"][name]
    return found


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][reference.rpartition("/")[2]]
    return found


async def test_the_document_has_all_errors(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        assert {str(status) for status in COMMON_ERRORS} <= operation["responses"].keys(), name
    assert len({operation["operationId"] for operation in operations(document).values()}) == len(operations(document))


async def test_the_document_has_rare_responses(document: dict[str, Any]) -> None:
    described = operations(document)
    for name, operation in described.items():
        if not name.startswith("GET ") and not name.endswith("/token"):
            assert "507" in operation["responses"], name
        assert ({"token": []} in operation.get("security", [])) is name.startswith(("GET /api/", "GET /badge/")), name
    assert "404" in described["POST /api/jobs"]["responses"]
    assert document["components"]["securitySchemes"]["token"] == {"type": "apiKey", "in": "query", "name": "token"}


async def test_the_document_has_response_headers(document: dict[str, Any]) -> None:
    left = {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
    for name, status, headers in [
        ("GET /api/jobs/{}", "200", {"ETag", *left}),
        ("GET /api/jobs/{}", "404", left),
        ("GET /api/jobs/{}/download", "206", {"Content-Disposition", "ETag", *left}),
        ("POST /api/convert", "202", {"Idempotency-Replayed", *left}),
        ("POST /api/convert", "429", {"Retry-After", *left}),
        ("GET /api/health/ready", "503", {"Retry-After"}),
    ]:
        assert operations(document)[name]["responses"][status]["headers"].keys() == headers, (name, status)
    described = document["components"]["headers"]
    for operation in operations(document).values():
        for answer in operation["responses"].values():
            for name, reference in answer.get("headers", {}).items():
                assert reference == {"$ref": f"#/components/headers/{name}"}
                assert described[name]["schema"]["type"] in ("string", "integer")


@pytest.mark.parametrize(
    ("examples", "phases"),
    [(3, "examples,fuzzing"), pytest.param(400, "examples,coverage,fuzzing,stateful", marks=pytest.mark.torture)],
)
def test_the_daemon_conforms_to_the_document(tmp_path: Path, examples: int, phases: str) -> None:
    with served_daemon(tmp_path / "state") as daemon:
        assert daemon.request("POST", "/api/jobs", json={"id": ID, "kind": "backup"}).status_code == 201
        options = (
            f"--phases {phases} -n {examples} --seed 1 --request-timeout {PATIENCE} --suppress-health-check too_slow"
        )
        left_out = [argument for name in (*STREAMS, *TUS) for argument in ("--exclude-operation-id", name)]
        program = str(Path(sys.executable).with_name("schemathesis"))
        command = [program, "run", f"{daemon.url}/api/openapi.json", "--checks", CHECKS, *options.split(), *left_out]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout
        found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert found is not None, done.stdout
        assert int(found[1]) == int(found[2]) > 10 * examples
        assert daemon.request("GET", "/api/health").json()["status"] == "healthy"


async def test_the_docs_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, auth={"required": True}) as daemon, client_of(daemon) as client:
        page = await client.get("/api/docs")
        document = (await client.get("/api/openapi.json")).json()
        loaded = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
        assert {(await client.get(f"/api/{target}")).status_code for target in loaded} == {200}
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert loaded == ["../static/favicon.svg", "../static/reference.css", "openapi.json"]
    assert "<script" not in page.text
    assert "style=" not in page.text
    targets = set(re.findall(r'href="#([^"]+)"', page.text))
    assert targets <= set(re.findall(r'id="([^"]+)"', page.text))
    for operation in operations(document).values():
        assert operation["operationId"] in targets
