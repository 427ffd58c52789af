"""The queue between a program and its log: bounded, in order, and it says what is missing."""

import re

from hypothesis import given
from hypothesis import strategies as st
from progressd.core.events import LogStream
from progressd.system import log_queue
from progressd.system.log_queue import LogEntry, LogQueue

OUT, ERR = LogStream.STDOUT, LogStream.STDERR


def taken(queue: LogQueue) -> list[LogEntry]:
    """Take everything from a closed queue."""
    entries = list[LogEntry]()
    while not queue.ended:
        entries += queue.take()
    return [*entries, *queue.take()]


def text_of(entries: list[LogEntry], stream: LogStream) -> bytes:
    return b"".join([entry.text for entry in entries if entry.stream is stream])


@given(st.lists(st.tuples(st.sampled_from([OUT, ERR]), st.binary(max_size=20).map(lambda b: b.replace(b"\r", b"")))))
def test_both_streams_are_complete_and_in_order(chunks: list[tuple[LogStream, bytes]]) -> None:
    puts = list[int]()
    queue = LogQueue(lambda: puts.append(1))
    entries = list[LogEntry]()
    for number, (stream, chunk) in enumerate(chunks):
        queue.put(stream, chunk)
        if number % 3 == 0:
            entries += queue.take()
    queue.close()
    entries += taken(queue)
    assert len(puts) == len(chunks) + 1
    for stream in (OUT, ERR):
        assert text_of(entries, stream) == b"".join([chunk for name, chunk in chunks if name is stream])


def test_of_too_much_output_the_beginning_and_the_end_stay() -> None:
    queue = LogQueue(lambda: None)
    count = 200_000
    for number in range(count):
        queue.put(OUT, b"%07d%s\n" % (number, b"x" * 92))
    assert queue._head_size + queue._tail_size <= log_queue.MAX_HEAD + log_queue.MAX_TAIL
    queue.close()
    entries = taken(queue)
    lines = text_of(entries, OUT).splitlines(keepends=True)
    assert (int(lines[0][:7]), int(lines[-1][:7])) == (0, count - 1)
    [missing] = re.findall(rb"^(\d+) bytes of output are missing", text_of(entries, LogStream.NOTE))
    assert sum(map(len, lines)) + int(missing) == 100 * count
    assert max(len(entry.text) for entry in entries) <= log_queue.MAX_TEXT


def test_many_small_chunks_share_an_entry() -> None:
    queue = LogQueue(lambda: None)
    for _ in range(20_000):
        queue.put(OUT, b"x")
    assert len(queue._head) < 1000
    queue.close()
    assert text_of(taken(queue), OUT) == b"x" * 20_000


def test_the_number_of_entries_is_bounded() -> None:
    queue = LogQueue(lambda: None)
    for _ in range(30_000):
        queue.put(OUT, b"x")
        queue.put(ERR, b"y")
    assert len(queue._head) + len(queue._tail) < 50_000
    queue.close()
    entries = taken(queue)
    [missing] = re.findall(rb"^(\d+) bytes of output are missing", text_of(entries, LogStream.NOTE))
    assert len(text_of(entries, OUT) + text_of(entries, ERR)) + int(missing) == 60_000
