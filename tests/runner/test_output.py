"""Output of a pipeline: events, progress by pattern, and the summary of standard error."""

from collections.abc import AsyncIterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.events import LogStream
from progressd.core.messages import encode
from progressd.core.progress_pattern import ProgressPattern
from progressd.detect.detector import STDERR, STDOUT, Detector
from progressd.detect.frames import MAX_FRAMES
from progressd.detect.plan import Plan
from progressd.producers.ndjson import TURN_LINES, NumberedLine
from progressd.runner.output import OutputParser, PipelineOutputBuffer, without_events
from progressd.runner.process import MAX_SUMMARY, summary
from progressd.store.sqlite import SQLiteStore
from structlog.testing import capture_logs
from support.samples import ID
from support.spine import Spine, progress, register, running, start

STEPS = r"(?P<current>\d+)/(?P<total>\d+)"
LOG_LINE = b'{"level":"info","message":"page 5/12"}'


@pytest.fixture
async def spine(store: SQLiteStore) -> AsyncIterator[Spine]:
    async with running(store) as spine:
        await spine.submit(register(), start())
        yield spine


def parser(spine: Spine, pattern: str | None = None) -> OutputParser:
    found = ProgressPattern(pattern) if pattern else None
    return OutputParser(ID, spine.ingest, Detector(Plan(("x",)), found), always=pattern is not None)


def numbered(*lines: bytes) -> list[NumberedLine]:
    return list(enumerate(lines, 1))


async def step_of(spine: Spine) -> int:
    return (await spine.registry.get(ID)).progress.current_step


@pytest.mark.parametrize("pattern", [None, STEPS])
async def test_invalid_events_are_logged_once_a_job(spine: Spine, pattern: str | None) -> None:
    output = parser(spine, pattern)
    with capture_logs() as logs:
        for _ in range(3):
            await output.on_stdout(numbered(LOG_LINE, b'{"type":"dance"}', b"{", encode(progress(3))))
            await output.on_chunk(STDERR, b"99999999999999999999999/x\n")
    assert [(one["log_level"], one["job_id"]) for one in logs if "not an event" in one["event"]] == [("warning", ID)]
    assert len(logs) == 1
    assert await step_of(spine) == 3


async def test_the_pattern_searches_invalid_events(spine: Spine) -> None:
    await parser(spine, STEPS).on_chunk(STDOUT, LOG_LINE + b"\n")
    assert await step_of(spine) == 5


async def test_a_program_that_reports_progress_is_not_searched(spine: Spine) -> None:
    output = parser(spine)
    await output.on_chunk(STDOUT, b"[1/9]\n[2/9]\n")
    assert await step_of(spine) == 2
    await output.on_stdout(numbered(encode(progress(3))))
    await output.on_chunk(STDOUT, b"[4/9]\n")
    await output.on_chunk(STDOUT, b"")
    assert await step_of(spine) == 3


async def test_an_unfinished_line_is_searched_after_a_pause(spine: Spine) -> None:
    output = parser(spine)
    await output.on_chunk(STDERR, b"\r1/9 a\r2/9 a")
    assert await step_of(spine) == 0
    await output.on_chunk(STDERR, b"")
    assert await step_of(spine) == 2


@pytest.mark.parametrize("pattern", [None, STEPS])
@pytest.mark.parametrize("line", [LOG_LINE, b"text", b"5/12", b'{"type":"error","data":{"message":"no"}}'])
async def test_many_lines_leave_turns_to_other_tasks(spine: Spine, pattern: str | None, line: bytes) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    output, lines = parser(spine, pattern), numbered(*[line] * 20 * TURN_LINES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await output.on_stdout(lines)
        nursery.cancel_scope.cancel()
    assert turns >= 19


@pytest.mark.parametrize("pattern", [None, STEPS])
@pytest.mark.parametrize("line", [LOG_LINE, b"text 1", b"5/12"])
async def test_a_search_leaves_a_turn_to_other_tasks(spine: Spine, pattern: str | None, line: bytes) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        while not turns:
            await trio.lowlevel.checkpoint()
        turns = 0
        await parser(spine, pattern).on_chunk(STDERR, (line + b"\n") * MAX_FRAMES)
        nursery.cancel_scope.cancel()
    assert turns >= 1


@pytest.mark.parametrize(
    ("stderr", "text"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"one\nsh: 1: pv: not found\n\n", "sh: 1: pv: not found"),
        (b"gzip: /var/lib/progressd/jobs/1a/input: not in gzip format", "gzip: input: not in gzip format"),
        (b"cannot open '/etc/passwd', nor /x", "cannot open 'passwd', nor x"),
        (b"\x1b[31mbad\x1b[0m \x07page\t3 / 4", "bad page 3 / 4"),
        (b"see https://example.org/a/b", "see https://example.org/a/b"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"x" * 1000, "x" * (MAX_SUMMARY - 1) + "…"),
    ],
)
def test_the_summary_is_one_short_line_without_directories(stderr: bytes, text: str) -> None:
    assert summary(stderr) == text


@given(st.binary())
def test_the_summary_is_printable_and_short(stderr: bytes) -> None:
    text = summary(stderr)
    assert len(text) <= MAX_SUMMARY
    assert text == "" or text.isprintable()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"plain\n", b"plain\n"),
        (encode(progress(3)) + b"\nplain\n  " + encode(progress(4)) + b"\n", b"plain\n"),
        (LOG_LINE + b"\n{\n", LOG_LINE + b"\n{\n"),
        (b"\r{no\nevent}", b"\r{no\nevent}"),
        (b'{"type":"progress","pct":5}\n', b'{"type":"progress","pct":5}\n'),
        (b'{"type":"error","msg":"disk full"}\n', b'{"type":"error","msg":"disk full"}\n'),
        (b'{"type":"log","data":{"text":"one"}}\ntwo\n', b"one\ntwo\n"),
    ],
)
def test_events_are_left_out_of_the_log(text: bytes, kept: bytes) -> None:
    parts = without_events(text, ID)
    assert {stream for stream, _ in parts} == {LogStream.STDOUT}
    assert b"".join([part for _, part in parts]) == kept


def test_only_stdout_has_events() -> None:
    event, after = encode(progress(3)) + b"\n", b'{"type":"log","data":{"stream":"stderr","text":"full"}}\nend\n'
    queue = PipelineOutputBuffer(lambda: None, ID)
    queue.put(LogStream.STDERR, event)
    queue.put(LogStream.STDOUT, event + after)
    queue.close()
    assert [(entry.stream, entry.text) for entry in queue.take()] == [
        (LogStream.STDERR, event),
        (LogStream.STDERR, b"full\n"),
        (LogStream.STDOUT, b"end\n"),
    ]
