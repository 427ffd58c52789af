"""The log of a job on disk: records and offsets survive trimming and crashes."""

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from progressd.core.events import LogStream, ReportedLog
from progressd.core.messages import LogLine
from progressd.engine.log_reader import log_messages
from progressd.files.job_logs import Chunk, record_of
from progressd.files.log_file import LogFile, Piece, Record, position_of_tail, position_since, read, segments

MAX = 4096
HOURS = timedelta(hours=23)
TEXTS = st.sampled_from(
    [b"line\n", b"two\nlines\n", b"part", b"\n", "ü\n".encode(), b"2026-01-01 note 3\n", b"y\n" * 99]
)
RECORDS = st.lists(st.tuples(TEXTS, st.sampled_from(list(LogStream))), max_size=60)


@contextmanager
def new_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path, "log")


def record(number: int, text: bytes = b"line\n", stream: LogStream = LogStream.STDOUT, source: str = "") -> Record:
    return Record(
        f"2026-01-01T00:{number // 60 % 60:02d}:{number % 60:02d}.000Z", stream, text, source, number if source else 0
    )


def everything(directory: Path, position: int = 0) -> list[Piece]:
    """Return all records from a position on, read segment by segment."""
    found = list[Piece]()
    while pieces := read(directory, position):
        found += pieces
        position = pieces[-1].end
    return found


def written(directory: Path, given: list[tuple[bytes, LogStream]], max_bytes: int = MAX) -> list[Piece]:
    log = LogFile(directory, max_bytes)
    return [log.append([record(number, *one)])[0] for number, one in enumerate(given)]


def lines_from(directory: Path, position: int) -> list[tuple[int, LogLine]]:
    """Return the lines from a position on, each with the offset of its message."""
    pieces = everything(directory, position)
    if not pieces:
        return []
    chunk = Chunk(pieces, pieces[0].begin - position)
    return [(message.data.offset, line) for message in log_messages("x", chunk) for line in message.data.lines]


@given(RECORDS)
@settings(max_examples=25)
def test_a_long_log_keeps_beginning_and_end(given: list[tuple[bytes, LogStream]]) -> None:
    with new_directory() as directory:
        added = written(directory, given)
        kept = everything(directory)
        assert sum(segment.size for segment in segments(directory)) <= MAX + MAX // 8 + 300
        assert set(kept) <= set(added)
        gaps = [after.begin - before.end for before, after in itertools.pairwise(kept)]
        assert sum(gap > 0 for gap in gaps) <= 1
        assert min(gaps, default=0) >= 0
        if added:
            assert (kept[0], kept[-1]) == (added[0], added[-1])
        if added and added[-1].end <= MAX:
            assert kept == added


@given(RECORDS, st.data())
@settings(max_examples=25)
def test_a_watcher_resumes_at_the_offset_of_any_message(
    given: list[tuple[bytes, LogStream]], data: st.DataObject
) -> None:
    with new_directory() as directory:
        written(directory, given)
        lines = lines_from(directory, 0)
        offset = data.draw(st.sampled_from([0, *[offset for offset, _ in lines]]))
        assert lines_from(directory, offset) == [one for one in lines if one[0] > offset]


@given(RECORDS, st.integers(0, 400))
@settings(max_examples=25)
def test_the_tail_has_the_last_lines(given: list[tuple[bytes, LogStream]], lines: int) -> None:
    with new_directory() as directory:
        written(directory, given, 1 << 20)
        text = b"".join([text for text, _ in given])
        tail = b"".join([piece.text for piece in everything(directory, position_of_tail(directory, lines))])
        expected = text.splitlines(keepends=True)[-lines:] if lines else []
        assert tail == b"".join(expected)


@given(RECORDS.filter(bool), st.integers(0, 300))
@settings(max_examples=25)
def test_an_incomplete_record_is_cut(given: list[tuple[bytes, LogStream]], missing: int) -> None:
    with new_directory() as directory:
        written(directory, given)
        before, last = everything(directory), segments(directory)[-1]
        os.truncate(last.path, max(0, last.size - missing))
        end = max(last.offset, last.end - missing)
        log = LogFile(directory, MAX)
        complete = [piece for piece in before if piece.end <= end]
        assert everything(directory) == complete
        [added] = log.append([record(7, b"after the crash\n")])
        assert everything(directory)[-1] == added
        assert everything(directory)[:-1] == [piece for piece in complete if piece in everything(directory)]


def test_a_restart_keeps_the_last_number_of_sources(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", MAX)
    log.append([record(3, source="aa"), record(9, source="bb"), record(4, source="aa")])
    assert LogFile(tmp_path / "log", MAX).last == {"aa": 4, "bb": 9} == log.last


def test_only_the_newest_sources_keep_a_number(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 1 << 20)
    log.append([record(1, source=f"{number:x}") for number in range(1, 1002)])
    log.append([record(2, source="2"), record(1, source="fff")])
    assert len(log.last) == 1000
    assert (log.last.get("2"), log.last.get("3"), log.last.get("fff")) == (2, None, 1)
    assert LogFile(tmp_path / "log", 1 << 20).last == log.last


def test_a_time_selects_the_records_from_then_on(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", MAX)
    first, second = log.append([record(1), record(2)])
    assert position_since(tmp_path / "log", "2026-01-01T00:00:01.500Z") == second.begin
    assert position_since(tmp_path / "log", first.time) == 0
    assert position_since(tmp_path / "log", "2027") == log.end


@given(st.datetimes(timezones=st.timezones() | st.builds(timezone, st.timedeltas(-HOURS, HOURS))))
@example(datetime(1, 1, 1, tzinfo=UTC))
@example(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))))
@example(datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(-timedelta(hours=1))))
@settings(max_examples=25)
def test_any_record_is_readable_after_a_restart(time: datetime) -> None:
    with new_directory() as directory:
        added = LogFile(directory, MAX).append([record_of(ReportedLog("x", time=time)), record(1)])
        assert LogFile(directory, MAX).end == added[-1].end
        assert everything(directory) == added


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert (read(tmp_path / "log", 0), position_of_tail(tmp_path / "log", 9), LogFile(tmp_path / "log", MAX).end) == (
        [],
        0,
        0,
    )
    assert not (tmp_path / "log").exists()


def test_long_lines_are_divided_between_characters(tmp_path: Path) -> None:
    text = ("ü" * 30_000 + "\n").encode()
    written(tmp_path / "log", [(b"x" + text, LogStream.STDERR)], 1 << 20)
    lines = [line for _, line in lines_from(tmp_path / "log", 0)]
    assert [line.partial for line in lines] == [True] * (len(lines) - 1) + [False]
    assert "".join([line.text for line in lines]) == "x" + "ü" * 30_000
    for offset, _ in lines_from(tmp_path / "log", 0):
        assert "\ufffd" not in "".join([line.text for _, line in lines_from(tmp_path / "log", offset)])
