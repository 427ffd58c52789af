import json
import uuid
from contextlib import nullcontext

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.errors import InvalidInput
from progressd.core.events import (
    CompletedEvent,
    ErrorEvent,
    PreviewEvent,
    ProducerEvent,
    ProgressEvent,
    RegisterEvent,
    Registration,
    ReportedProgress,
    ReportedResult,
    ReportedStatus,
    StatusEvent,
    checked_job_id,
)
from progressd.core.messages import ErrorData, JobStatus, PagePreviewData, encode
from support.samples import ID, cancelled, moved, started, succeeded

decode = msgspec.json.Decoder(ProducerEvent).decode


def line(type_: str, **data: object) -> str:
    return json.dumps({"type": type_, "job_id": ID, "data": data})


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (
            line("progress", current_step=5, total_steps=12, step_name="AI Upscaling"),
            ProgressEvent(ID, ReportedProgress(5, 12, "AI Upscaling")),
        ),
        (line("progress", current_step=5, total_steps=12), ProgressEvent(ID, ReportedProgress(5, 12))),
        (
            line("progress", current_step=5, total_steps=0, percent=33.3),
            ProgressEvent(ID, ReportedProgress(5, 0, "", 33.3)),
        ),
        (line("status_change", new_status="processing"), StatusEvent(ID, ReportedStatus(JobStatus.PROCESSING))),
        (
            line("status_change", old_status="processing", new_status="cancelled"),
            StatusEvent(ID, ReportedStatus(JobStatus.CANCELLED, JobStatus.PROCESSING)),
        ),
        (
            line("completed", output_path="/api/jobs/x/download", elapsed_seconds=45.2, page_count=12),
            CompletedEvent(ID, ReportedResult("/api/jobs/x/download", 45.2, 12)),
        ),
        (line("completed", output_path=None, page_count=None), CompletedEvent(ID)),
        (
            line("completed", elapsed_seconds=36500 * 86400, page_count=10**9),
            CompletedEvent(ID, ReportedResult(None, 36500 * 86400, 10**9)),
        ),
        (line("job_created", lease_seconds=1), RegisterEvent(ID, Registration(lease_seconds=1))),
        (line("completed"), CompletedEvent(ID)),
        (f'{{"type":"completed","job_id":"{ID}"}}', CompletedEvent(ID)),
        (line("error", message="no paper"), ErrorEvent(ID, ErrorData("no paper"))),
        (
            line("page_preview", page_number=3, preview_base64="aGk=", stage="deskew", width=320, height=200),
            PreviewEvent(ID, PagePreviewData(3, "aGk=", "deskew", 320, 200)),
        ),
        (f'{{"type":"job_created","job_id":"{ID}"}}', RegisterEvent(ID)),
        (
            line("job_created", kind="scan", input_filename="b", total_steps=9, options={"d": [1]}, labels={"a": "b"}),
            RegisterEvent(ID, Registration("scan", "b", 9, {"d": [1]}, {"a": "b"})),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_producer_lines_are_decoded(text: str, event: ProducerEvent) -> None:
    assert decode(text) == event


def test_unknown_fields_are_ignored() -> None:
    text = '{"v":2,"type":"progress","ref":1,"job_id":"x","data":{"current_step":1,"total_steps":2,"speed":[1,{}]}}'
    assert decode(text) == ProgressEvent("x", ReportedProgress(1, 2))


@pytest.mark.parametrize(
    "message", [started(), moved(5), *succeeded(), cancelled()], ids=lambda message: type(message).__name__
)
def test_events_equal_messages_to_watchers(message: msgspec.Struct) -> None:
    event = decode(encode(message))
    told, kept = msgspec.to_builtins(event)["data"], msgspec.to_builtins(message)["data"]
    assert told.items() <= {**kept, "percent": float(kept.get("percent", 0))}.items()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "[]",
        "{}",
        '{"type":"progress"}',
        '{"type":"progress","job_id":"x"}',
        '{"job_id":"x","data":{"current_step":1,"total_steps":2}}',
        '{"type":"progress","job_id":1,"data":{"current_step":1,"total_steps":2}}',
        line("progress", current_step=-1, total_steps=2),
        line("progress", current_step=1, total_steps=-2),
        line("progress", current_step=1.5, total_steps=2),
        line("progress", current_step="1", total_steps=2),
        line("progress", current_step=True, total_steps=2),
        line("progress", current_step=2**53 + 1, total_steps=2),
        line("progress", current_step=1, total_steps=2, percent=-1),
        line("progress", current_step=1, total_steps=2, percent=True),
        line("progress", current_step=1, total_steps=2, step_name=None),
        line("progress", current_step=1, total_steps=2, step_name="x" * 1001),
        '{"type":"progress","job_id":"x","data":{"current_step":1,"total_steps":2,"percent":1e999}}',
        '{"type":"progress","job_id":"x","data":{"current_step":1,"total_steps":2,"percent":NaN}}',
        '{"type":"progress","job_id":"x","data":{"current_step":1,"total_steps":2,"step_name":"\\ud800"}}',
        line("status_change"),
        line("status_change", new_status="done"),
        line("status_change", new_status="cancelled", old_status="done"),
        line("completed", elapsed_seconds=-1),
        line("completed", elapsed_seconds=1e308),
        line("completed", elapsed_seconds=36501 * 86400),
        line("completed", page_count=-1),
        line("completed", page_count=10**9 + 1),
        line("completed", output_path="x" * 4097),
        line("error"),
        line("error", message=None),
        line("page_preview", page_number=1),
        line("job_created", kind=""),
        line("job_created", kind="x" * 201),
        line("job_created", total_steps=-1),
        line("job_created", lease_seconds=1e-9),
        line("job_created", lease_seconds=0.99),
        line("job_created", lease_seconds=1e12),
        line("job_created", lease_seconds="soon"),
        line("job_created", lease_seconds=True),
        line("job_created", options=[]),
        line("job_created", labels={"a": 1}),
        line("job_created", labels={"a": "x" * 1001}),
        line("server_shutdown", reason="x", countdown_secs=1),
        line("resync"),
        line("start"),
    ],
)
def test_an_invalid_line_is_rejected(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(text)


@pytest.mark.parametrize("depth", [2, 32])
def test_options_may_be_nested(depth: int) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    event = decode(f'{{"type":"job_created","job_id":"{ID}","data":{{"options":{nested}}}}}')
    assert isinstance(event, RegisterEvent)


@pytest.mark.parametrize("depth", [33, 200, 900])
@pytest.mark.parametrize("brackets", [('{"a":', "}"), ('{"a":[', "]}")], ids=["objects", "lists"])
def test_too_deeply_nested_options_are_rejected(depth: int, brackets: tuple[str, str]) -> None:
    nested = brackets[0] * depth + "1" + brackets[1] * depth
    with pytest.raises((msgspec.ValidationError, RecursionError)):
        decode(f'{{"type":"job_created","job_id":"{ID}","data":{{"options":{nested}}}}}')


def test_too_large_options_are_rejected() -> None:
    for size, good in ((65536, True), (65537, False)):
        text = f'{{"type":"job_created","data":{{"options":{{"a":"{"x" * (size - 8)}"}}}}}}'
        with nullcontext() if good else pytest.raises(InvalidInput, match="the options are larger than 64 KiB"):
            decode(text)


@given(st.uuids())
def test_every_uuid_is_a_job_id(id_: uuid.UUID) -> None:
    assert checked_job_id(str(id_)) == str(id_) == checked_job_id(str(id_).upper())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "not-a-uuid",
        "6e4d1c9e0d5c4f0e9d3a8f6f2f1f5b7c",
        "{6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c}",
        "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7",
        "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7cc",
        "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7g",
        "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c\n",
        "６e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c",
        "../../../../etc/passwd",
        "x" * 1_000_000,
    ],
    ids=lambda text: repr(text[:40]),
)
def test_an_invalid_uuid_is_rejected(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected a UUID such as") as refused:
        checked_job_id(text)
    assert len(str(refused.value)) < 300


@given(st.text(max_size=60))
def test_any_text_is_a_job_id_or_rejected(text: str) -> None:
    try:
        job_id = checked_job_id(text)
    except InvalidInput:
        return
    assert checked_job_id(job_id) == job_id == str(uuid.UUID(text))
