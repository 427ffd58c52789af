from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from progressd.core.errors import InvalidInput
from progressd.core.messages import (
    Completed,
    CompletedData,
    Cursor,
    Error,
    ErrorData,
    JobCreated,
    JobCreatedData,
    JobDeleted,
    JobDeletedData,
    JobStatus,
    Message,
    PagePreview,
    PagePreviewData,
    Progress,
    ProgressData,
    Resync,
    ServerShutdown,
    ServerShutdownData,
    ServerStatus,
    ServerStatusData,
    StatusChange,
    StatusChangeData,
    decode,
    encode,
    ends_job,
)

ID = "550e8400-e29b-41d4-a716-446655440000"
URL = f"/api/jobs/{ID}/download"

PROGRESS = Progress(ID, ProgressData(5, 12, "AI Upscaling", 42))
STATUS_CHANGE = StatusChange(ID, StatusChangeData(JobStatus.QUEUED, JobStatus.PROCESSING))
COMPLETED = Completed(ID, CompletedData(URL, 45.2, 12, URL))
ERROR = Error(ID, ErrorData("Pipeline error: PDF extraction failed"))


def line(text: str) -> bytes:
    return text.replace("…", ID).encode()


@pytest.mark.parametrize(
    ("message", "specified"),
    [
        (
            PROGRESS,
            '{"type":"progress","job_id":"…","data":'
            '{"current_step":5,"total_steps":12,"step_name":"AI Upscaling","percent":42}}',
        ),
        (
            STATUS_CHANGE,
            '{"type":"status_change","job_id":"…","data":{"old_status":"queued","new_status":"processing"}}',
        ),
        (ERROR, '{"type":"error","job_id":"…","data":{"message":"Pipeline error: PDF extraction failed"}}'),
    ],
    ids=["progress", "status_change", "error"],
)
def test_messages_equal_the_examples_of_the_specification(message: Message, specified: str) -> None:
    assert encode(message) == line(specified)


def test_completed_adds_the_download_url_at_the_end() -> None:
    assert encode(COMPLETED) == line(
        '{"type":"completed","job_id":"…","data":{"output_path":"/api/jobs/…/download","elapsed_seconds":45.2,'
        '"page_count":12,"download_url":"/api/jobs/…/download"}}'
    )


def test_completed_without_a_result_has_nulls() -> None:
    assert encode(Completed(ID, CompletedData(None, 0.5, None, None))) == line(
        '{"type":"completed","job_id":"…","data":'
        '{"output_path":null,"elapsed_seconds":0.5,"page_count":null,"download_url":null}}'
    )


@pytest.mark.parametrize("message", [PROGRESS, STATUS_CHANGE, COMPLETED, ERROR], ids=lambda m: type(m).__name__)
def test_cursor_and_time_come_last(message: Progress) -> None:
    placed = replace(message, cursor="a1b2-7", time=datetime(2026, 3, 1, 12, 30, tzinfo=UTC))
    assert encode(placed) == encode(message)[:-1] + b',"cursor":"a1b2-7","time":"2026-03-01T12:30:00Z"}'


def test_eta_comes_last_in_progress_data() -> None:
    assert encode(Progress(ID, ProgressData(5, 12, "AI Upscaling", 42, 61.5))) == line(
        '{"type":"progress","job_id":"…","data":'
        '{"current_step":5,"total_steps":12,"step_name":"AI Upscaling","percent":42,"eta_seconds":61.5}}'
    )


def test_empty_progress_has_all_keys() -> None:
    assert encode(Progress(ID, ProgressData(0, 0, "", 0))) == line(
        '{"type":"progress","job_id":"…","data":{"current_step":0,"total_steps":0,"step_name":"","percent":0}}'
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            JobCreated(ID, JobCreatedData("scan", JobStatus.QUEUED, datetime(2026, 3, 1, tzinfo=UTC))),
            '{"type":"job_created","job_id":"…","data":'
            '{"kind":"scan","status":"queued","created_at":"2026-03-01T00:00:00Z"}}',
        ),
        (
            JobCreated(
                ID,
                JobCreatedData("scan", JobStatus.QUEUED, datetime(2026, 3, 1, tzinfo=UTC), "book.pdf", {"by": "eve"}),
            ),
            '{"type":"job_created","job_id":"…","data":{"kind":"scan","status":"queued",'
            '"created_at":"2026-03-01T00:00:00Z","input_filename":"book.pdf","labels":{"by":"eve"}}}',
        ),
        (
            PagePreview(ID, PagePreviewData(3, "aGVsbG8=", "deskew", 320, 200)),
            '{"type":"page_preview","job_id":"…","data":{"page_number":3,"preview_base64":"aGVsbG8=",'
            '"stage":"deskew","width":320,"height":200}}',
        ),
        (
            JobDeleted(ID, JobDeletedData(JobStatus.FAILED)),
            '{"type":"job_deleted","job_id":"…","data":{"status":"failed"}}',
        ),
        (
            ServerShutdown(ServerShutdownData("maintenance", 30)),
            '{"type":"server_shutdown","data":{"reason":"maintenance","countdown_secs":30}}',
        ),
        (
            ServerStatus(ServerStatusData("failing", "the disk is full")),
            '{"type":"server_status","data":{"status":"failing","error":"the disk is full"}}',
        ),
        (ServerStatus(ServerStatusData("healthy")), '{"type":"server_status","data":{"status":"healthy"}}'),
        (Resync(), '{"type":"resync"}'),
    ],
    ids=lambda value: value.__struct_config__.tag if isinstance(value, Message) else "",
)
def test_added_messages_have_these_keys(message: Message, expected: str) -> None:
    assert encode(message) == line(expected)


def test_text_is_utf_8_on_one_line() -> None:
    encoded = encode(Error(ID, ErrorData("Seite 3:\nunlesbar – 読めない 😀")))
    assert b"\n" not in encoded
    assert msgspec.json.decode(encoded)["data"]["message"] == "Seite 3:\nunlesbar – 読めない 😀"


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
seconds = st.floats(0, 1e9)
whole = st.integers(0, 2**53)
times = st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1))
statuses = st.sampled_from(JobStatus)
datas = st.one_of(
    st.builds(ProgressData, whole, whole, names, st.integers(0, 100), st.just(msgspec.UNSET) | seconds),
    st.builds(StatusChangeData, statuses, statuses),
    st.builds(CompletedData, st.none() | names, seconds, st.none() | whole, st.none() | names),
    st.builds(ErrorData, names),
    st.builds(JobCreatedData, names, statuses, times, st.none() | names, st.dictionaries(names, names, max_size=3)),
    st.builds(PagePreviewData, whole, names, names, whole, whole),
)
TYPES = {
    ProgressData: Progress,
    StatusChangeData: StatusChange,
    CompletedData: Completed,
    ErrorData: Error,
    JobCreatedData: JobCreated,
    PagePreviewData: PagePreview,
}


@given(datas, names, st.just(msgspec.UNSET) | names, st.just(msgspec.UNSET) | times)
def test_every_message_reads_back_as_it_was_written(
    data: msgspec.Struct, job_id: str, cursor: str | msgspec.UnsetType, time: datetime | msgspec.UnsetType
) -> None:
    message = TYPES[type(data)](job_id, data, cursor, time)
    again = decode(encode(message))
    assert again == message
    assert encode(again) == encode(message)


@pytest.mark.parametrize(
    ("message", "ends"),
    [
        (PROGRESS, False),
        (STATUS_CHANGE, False),
        (StatusChange(ID, StatusChangeData(JobStatus.PROCESSING, JobStatus.COMPLETED)), False),
        (StatusChange(ID, StatusChangeData(JobStatus.PROCESSING, JobStatus.FAILED)), False),
        (StatusChange(ID, StatusChangeData(JobStatus.PROCESSING, JobStatus.CANCELLED)), True),
        (COMPLETED, True),
        (ERROR, True),
        (Resync(), False),
        (ServerShutdown(ServerShutdownData("maintenance", 30)), False),
    ],
)
def test_ends_job_names_the_last_message(message: Message, ends: bool) -> None:
    assert ends_job(message) is ends


# Cursors

stores = st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=32)
offsets = st.integers(0, 10**18 - 1)


@given(stores, offsets)
def test_a_cursor_reads_back_as_it_was_written(store: str, offset: int) -> None:
    cursor = Cursor(store, offset)
    assert Cursor.parse(str(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "a1b2",
        "a1b2-",
        "-7",
        "a1b2-x",
        "a1b2--7",
        "a1b2-7-7",
        "A1B2-7",
        "a1b2-7 ",
        " a1b2-7",
        "a1b2-7\n",
        "a1b2-+7",
        "a1b2-٧",
        "ä-7",
        "a" * 33 + "-7",
        "a1b2-" + "1" * 19,
        "x" * 1_000_000,
    ],
    ids=lambda text: repr(text[:40]),
)
def test_an_invalid_cursor_is_rejected(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a cursor") as refused:
        Cursor.parse(text)
    assert len(str(refused.value)) < 200


@given(st.text(max_size=40))
def test_any_text_is_a_cursor_or_rejected(text: str) -> None:
    try:
        cursor = Cursor.parse(text)
    except InvalidInput:
        return
    assert Cursor.parse(str(cursor)) == cursor
