"""Producers' lines: splitting a stream of bytes, and decoding each line."""

import gc
import itertools
import json
import uuid
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from progressd.core.errors import Conflict, InvalidInput
from progressd.core.events import (
    LARGE,
    ErrorEvent,
    ProgressEvent,
    RegisterEvent,
    ReportedProgress,
)
from progressd.core.messages import ErrorData, encode
from progressd.producers.ndjson import Ack, Line, LineSplitter, LineTooLong, NumberedLine, read_event, read_line
from support.samples import ID, job, job_id

LIMIT = 8
OTHER_ID = job_id(2)
STEP = ProgressEvent(ID, ReportedProgress(5, 12, "AI Upscaling"))
STEP_TEXT = encode(STEP)

# few different bytes, so that line ends, blanks and lines about as long as the limit are common
streams = st.text(alphabet="\n\n\r \tabcd", max_size=80).map(str.encode)


def chunks_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Return the stream, cut at these places."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in itertools.pairwise(places)]


def split(chunks: list[bytes], limit: int = LIMIT) -> list[NumberedLine]:
    splitter = LineSplitter(limit)
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.end()


def comparable(lines: list[NumberedLine]) -> list[tuple[int, bytes | str]]:
    return [(number, str(line) if isinstance(line, LineTooLong) else line) for number, line in lines]


@given(streams, st.lists(st.integers(0, 1000), max_size=20))
def test_lines_do_not_depend_on_the_chunks(stream: bytes, cuts: list[int]) -> None:
    expected: list[tuple[int, bytes | str]] = [
        (number, line if len(line) <= LIMIT else f"the line has more than {LIMIT} bytes")
        for number, line in enumerate(stream.split(b"\n"), 1)
        if len(line) > LIMIT or line.strip()
    ]
    assert comparable(split(chunks_of(stream, cuts))) == expected


@given(st.lists(st.tuples(streams, st.lists(st.integers(0, 1000), max_size=5)), max_size=10))
def test_the_end_of_a_message_ends_its_line(
    messages: list[tuple[bytes, list[int]]],
) -> None:
    splitter = LineSplitter(LIMIT)
    lines: list[NumberedLine] = []
    for message, cuts in messages:
        for piece in chunks_of(message, cuts):
            lines += splitter.feed(piece)
        lines += splitter.end()
    whole = b"".join(message if message.endswith(b"\n") or not message else message + b"\n" for message, _ in messages)
    assert comparable(lines) == comparable(split([whole]))


def test_a_long_line_is_reported_once_and_skipped() -> None:
    splitter = LineSplitter(LIMIT)
    assert splitter.feed(b"one\n") == [(1, b"one")]
    assert comparable(splitter.feed(b"123456789")) == [(2, "the line has more than 8 bytes")]
    for _ in range(1000):
        assert splitter.feed(b"and so on ") == []
    assert splitter.feed(b"end\nthree\n") == [(3, b"three")]
    assert splitter.end() == []


def test_an_end_also_ends_a_long_line() -> None:
    splitter = LineSplitter(LIMIT)
    assert comparable(splitter.feed(b"123456789")) == [(1, "the line has more than 8 bytes")]
    assert splitter.end() == []
    assert splitter.feed(b"two") == []
    assert splitter.end() == [(2, b"two")]
    assert splitter.end() == []
    assert splitter.feed(b"three\n") == [(3, b"three")]


def test_a_long_line_may_arrive_byte_by_byte() -> None:
    """Copying the line for each byte would copy 200 GB."""
    splitter = LineSplitter(1 << 21)
    splitter.feed(b"x" * (1 << 20))
    for _ in range(200_000):
        splitter.feed(b"y")
    [(number, line)] = splitter.feed(b"\n")
    assert (number, line) == (1, b"x" * (1 << 20) + b"y" * 200_000)


@pytest.mark.parametrize(
    "text",
    [
        b'{"type":"progress","job_id":"%b","data":{"current_step":5,"total_steps":12,"step_name":"AI Upscaling"}}',
        b'\t{ "data" : {"step_name":"AI Upscaling","total_steps":12,"current_step":5}, "job_id":"%b",'
        b' "type":"progress" }\r',
        b'{"type":"progress","job_id":"%b","data":{"current_step":5,"total_steps":12,"step_name":"AI Upscaling",'
        b'"seconds_to_go":4,"mood":["good"]},"cursor":"x-1","time":"now","v":2}',
    ],
    ids=["as documented", "another order and spaces", "unknown fields"],
)
def test_json_may_be_written_in_many_ways(text: bytes) -> None:
    assert read_event(text.replace(b"%b", ID.encode())) == STEP


def test_each_job_without_an_id_gets_its_own() -> None:
    events = [read_event(b'{"type":"job_created","data":{"kind":"scan"}}') for _ in range(2)]
    first, second = (uuid.UUID(event.job_id) for event in events)
    assert first != second
    assert isinstance(events[0], RegisterEvent)
    assert events[0].data.kind == "scan"


def test_only_a_new_job_may_omit_its_id() -> None:
    with pytest.raises(InvalidInput, match="job_id"):
        read_event(b'{"type":"completed"}')


def test_an_event_to_a_job_may_omit_the_id() -> None:
    assert read_event(b'{"type":"error","data":{"message":"no paper"}}', ID) == ErrorEvent(ID, ErrorData("no paper"))
    assert read_event(b'{"type":"job_created"}', ID) == RegisterEvent(ID)


def test_an_id_may_be_in_upper_case() -> None:
    assert read_event(STEP_TEXT.replace(ID.encode(), ID.upper().encode()), ID).job_id.lower() == ID


@pytest.mark.parametrize("named", [json.dumps(OTHER_ID), '""', "null", "17", '["x"]'])
def test_an_event_sent_to_a_job_cannot_name_another(named: str) -> None:
    with pytest.raises(InvalidInput):
        read_event(b'{"type":"completed","job_id":%b}' % named.encode(), ID)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json",
        b"{",
        b"[]",
        b"null",
        b'"progress"',
        b"{}",
        b'{"type":"dance","job_id":"x"}',
        b'{"type":"progress","job_id":"x","data":{"current_step":1e300,"total_steps":12}}',
        b'{"type":"error","job_id":"\xff","data":{"message":"no"}}',
        b'{"type":"error","job_id":"x","data":{"message":"\xff"}}',
        b'{"type":"error","job_id":"x","data":{"message":"\\ud800"}}',
        b'{"type":"completed","job_id":"x"} {"type":"completed","job_id":"x"}',
        b'{"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"type":"completed","job_id":"x","deep":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b'{"type":"submit","job_id":"x","data":{},"pipeline":"pdf"}',
    ],
)
@pytest.mark.parametrize("sent_to", [None, ID])
def test_an_invalid_event_is_rejected_with_a_sentence(text: bytes, sent_to: str | None) -> None:
    with pytest.raises(InvalidInput, match=r"^(not an event|the event is about)"):
        read_event(text, sent_to)


@given(st.binary(max_size=200), st.sampled_from([None, ID]))
def test_no_bytes_raise_an_error(text: bytes, sent_to: str | None) -> None:
    assert isinstance(read_line(1, text, sent_to), Line | Ack)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_a_ref_of_any_type_is_returned_unchanged(ref: object) -> None:
    text = json.dumps({"type": "completed", "job_id": ID, "ref": ref}).encode()
    line = read_line(3, text)
    assert isinstance(line, Line)
    done = json.loads(encode(line.answer(job(offset=7), "store")))
    assert done == {"ref": ref, "ok": True, "cursor": "store-7"}
    refused = json.loads(encode(line.answer(Conflict("too late"), "store")))
    assert refused == {"ref": ref, "ok": False, "error": "too late", "status": 409, "line": 3}


@given(json_values)
def test_a_bad_line_is_answered_with_ref_and_number(ref: object) -> None:
    answer = read_line(9, json.dumps({"type": "dance", "ref": ref}).encode())
    assert isinstance(answer, Ack)
    sent = json.loads(encode(answer))
    assert sent["error"].startswith("not an event: ")
    assert {**sent, "error": ""} == {"ref": ref, "ok": False, "error": "", "status": 400, "line": 9}


@pytest.mark.parametrize("text", [b'{"ref":7,', b'{"ref":\xff}', b'{"ref":"\xff"}', b'"ref"', b'["ref"]'])
def test_an_unreadable_ref_is_omitted(text: bytes) -> None:
    answer = read_line(4, text)
    assert isinstance(answer, Ack)
    assert (answer.ok, answer.ref, answer.line) == (False, UNSET, 4)


def test_a_ref_that_is_not_utf8_is_rejected() -> None:
    answer = read_line(4, b'{"type":"completed","job_id":"%s","ref":"\xff"}' % ID.encode())
    assert answer == Ack(ok=False, error="not an event: the text is not UTF-8", status=400, line=4)


def test_a_long_line_is_answered_with_its_number() -> None:
    [(number, line)] = split([b"1234567890"])
    assert read_line(number, line) == Ack(ok=False, error="the line has more than 8 bytes", status=400, line=1)


def test_the_answer_to_a_new_job_has_its_id() -> None:
    line = read_line(1, b'{"type":"job_created","ref":1}')
    assert isinstance(line, Line)
    answer = line.answer(job(offset=3), "store")
    assert json.loads(encode(answer)) == {"ref": 1, "ok": True, "cursor": "store-3", "job_id": ID}


@contextmanager
def collections() -> Generator[list[str]]:
    """Note the garbage collections within this: Python makes one for so many new lists."""
    found = list[str]()

    def note(phase: str, _: object) -> None:
        found.append(phase)

    gc.callbacks.append(note)
    try:
        yield found
    finally:
        gc.callbacks.remove(note)


MANY = b"[" + b"[]," * 300_000 + b"[]]"


@pytest.mark.parametrize("of", [None, ID])
@pytest.mark.parametrize("double", [b"", b',"options":{}'])
def test_options_that_are_too_large_are_not_built(of: str | None, double: bytes) -> None:
    text = b'{"type":"job_created","data":{"options":{"a":%b}%b}}' % (MANY, double)
    with collections() as made:
        if double:
            assert isinstance(read_event(text, of), RegisterEvent)
        else:
            with pytest.raises(InvalidInput, match="the options are larger than 64 KiB"):
                read_event(text, of)
    assert len(made) < 10


def test_unknown_fields_of_an_event_are_not_built() -> None:
    with collections() as made:
        assert read_event(b'{"new":%b,%b' % (MANY, STEP_TEXT[1:]), ID) == STEP
    assert len(made) < 10


def test_large_events_are_read_as_small_ones_are() -> None:
    space = b" " * LARGE
    assert read_event(STEP_TEXT + space) == read_event(STEP_TEXT + space, ID) == STEP
    assert read_event(b'{"type":"job_created"}' + space, ID) == RegisterEvent(ID)
    text = b'{"type":"job_created","data":{"options":{"a":1}%b}}'
    assert read_event(text % space, ID) == read_event(text % b"", ID)
    for bad in (b"[]", b'{"type":"job_created","data":[]}', b"{"):
        with pytest.raises(InvalidInput, match="not an event"):
            read_event(bad + space)
