"""The age of the newest progress, while recorded runs of real tools are replayed on a virtual clock."""

import os
import pty
import tty
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import trio
from progressd.client.run.output import QUIET, FrameAges
from progressd.client.run.reporter import ReportPace
from progressd.core.events import ReportedProgress
from progressd.detect.detector import Detector
from progressd.detect.plan import plan
from progressd.detect.preset_loader import Presets
from progressd.runner.process import QUIET as QUIET_OF_PIPELINES
from progressd.runner.process import ProgramOutput, next_chunk
from support.transcripts import CASES, Case, Chunk, chunks_in
from trio.testing import MockClock

MAX_AGE = 0.25  # seconds
PRESETS = Presets()


class Value(NamedTuple):
    """Progress as a number that never falls, and its time."""

    at: float
    amount: float


def amount_of(progress: ReportedProgress) -> float:
    return float(progress.current_step or 0) if progress.percent is None else progress.percent


def written(case: Case, chunks: Sequence[Chunk]) -> list[Value]:
    """Return what the tool has written: all that can be found if it pauses after each chunk."""
    detector, at, values = Detector(plan(case.command.split(), PRESETS)), 0.0, list[Value]()
    for chunk in chunks:
        at += chunk.pause
        found = detector.feed(chunk.stream, chunk.text) + detector.quiet(chunk.stream)
        values += [Value(at, amount_of(one)) for one in found[-1:]]
    return values


class Replay:
    """Replay a run through pipes or a pseudo-terminal, with the reader of pipelines and the pace of `progressd run`.

    `found` and `reported` are the progress at the time when it was found and reported.
    """

    def __init__(self, case: Case, *, terminal: bool) -> None:
        self.found = list[Value]()
        self.reported = list[Value]()
        self._detector = Detector(plan(case.command.split(), PRESETS))
        self._pace = ReportPace()
        self._ages = FrameAges()
        self._terminal = terminal
        self._received = 0
        self._began = trio.current_time()

    async def run(self, chunks: Sequence[Chunk]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report)
            writers = {stream: self._opened(stream, nursery) for stream in {chunk.stream for chunk in chunks}}
            sent = 0
            for chunk in chunks:
                await trio.sleep(chunk.pause)
                await writers[chunk.stream].send_all(chunk.text)
                sent += len(chunk.text)
                while self._received < sent:
                    await trio.lowlevel.checkpoint()
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
            for writer in writers.values():
                with trio.CancelScope(shield=True):
                    await writer.aclose()

    def _opened(self, stream: int, nursery: trio.Nursery) -> trio.lowlevel.FdStream:
        if self._terminal:
            reading, writing = pty.openpty()
            tty.setraw(writing)
        else:
            reading, writing = os.pipe()
        nursery.start_soon(self._read, stream, ProgramOutput(trio.lowlevel.FdStream(reading)))
        return trio.lowlevel.FdStream(writing)

    async def _read(self, stream: int, output: ProgramOutput) -> None:
        async def search(stream: int, chunk: bytes) -> None:
            found = self._detector.feed(stream, chunk) if chunk else self._detector.quiet(stream)
            oldest = self._ages.age(stream, chunk, self._now) if chunk else self._ages.look(stream)
            self._received += len(chunk)
            if found:
                self.found.append(Value(self._now, amount_of(found[-1])))
                self._pace.note(oldest)

        try:
            while chunk := await next_chunk(output, stream, search):
                await search(stream, chunk)
        finally:
            with trio.CancelScope(shield=True):
                await output.aclose()

    async def _report(self) -> None:
        while True:
            await self._pace.wait()
            self.reported += [Value(self._now, one.amount) for one in self.found[-1:]]

    @property
    def _now(self) -> float:
        return trio.current_time() - self._began


def age(written: Sequence[Value], shown: Sequence[Value]) -> float:
    """Return the longest time for which a written value, or a later one, was not shown."""
    ages = [next(one.at for one in shown if one.amount >= value.amount) - value.at for value in written]
    return max(ages)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_the_newest_progress_of_a_tool_is_shown_in_time(
    case: Case, terminal: bool, autojump_clock: MockClock
) -> None:
    chunks = chunks_in(case.name)
    replay = Replay(case, terminal=terminal)
    await replay.run(chunks)
    values = written(case, chunks)
    assert age(values, replay.found) <= MAX_AGE
    assert age(values, replay.reported) <= MAX_AGE


def test_run_and_pipelines_search_an_unfinished_line_at_the_same_time() -> None:
    assert QUIET == QUIET_OF_PIPELINES
