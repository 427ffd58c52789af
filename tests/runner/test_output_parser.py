"""What a pipeline writes: which lines are events, what is logged of the others, and whose turn it is meanwhile."""

from collections.abc import AsyncIterator

import pytest
import trio
from progressd.core.messages import encode
from progressd.producers.ndjson import TURN_LINES, NumberedLine
from progressd.runner.output import OutputParser
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


def numbered(*lines: bytes) -> list[NumberedLine]:
    return list(enumerate(lines, 1))


async def step_of(spine: Spine) -> int:
    return (await spine.registry.get(ID)).progress.current_step


@pytest.mark.parametrize("pattern", [None, STEPS])
async def test_json_that_is_not_an_event_is_logged_once_a_job(spine: Spine, pattern: str | None) -> None:
    output = OutputParser(ID, spine.ingest, pattern)
    with capture_logs() as logs:
        for _ in range(3):
            await output.on_stdout(numbered(LOG_LINE, b'{"type":"dance"}', b"{", encode(progress(3))))
            await output.on_stderr(numbered(b"99999999999999999999999/1"))
    assert [(one["log_level"], one["job_id"]) for one in logs if "not an event" in one["event"]] == [("warning", ID)]
    assert len(logs) == 1
    assert await step_of(spine) == 3


async def test_the_pattern_searches_json_that_is_not_an_event(spine: Spine) -> None:
    await OutputParser(ID, spine.ingest, STEPS).on_stdout(numbered(LOG_LINE))
    assert await step_of(spine) == 5


@pytest.mark.parametrize("pattern", [None, STEPS])
@pytest.mark.parametrize("line", [LOG_LINE, b"text", b"5/12", b'{"type":"error","data":{"message":"no"}}'])
async def test_others_get_their_turn_between_many_lines(spine: Spine, pattern: str | None, line: bytes) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    output, lines = OutputParser(ID, spine.ingest, pattern), numbered(*[line] * 20 * TURN_LINES)
    for take in (output.on_stdout, output.on_stderr) if pattern else (output.on_stdout,):
        turns = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await take(lines)
            nursery.cancel_scope.cancel()
        assert turns >= 19
