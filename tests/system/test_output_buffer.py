"""The buffer between a program and its log: bounded, in order, and it says what is missing."""

import re

from hypothesis import given
from hypothesis import strategies as st
from progressd.core.events import LogStream
from progressd.system import output_buffer
from progressd.system.output_buffer import OutputBuffer, OutputChunk

OUT, ERR = LogStream.STDOUT, LogStream.STDERR


def taken(buffer: OutputBuffer) -> list[OutputChunk]:
    """Take everything from a closed buffer."""
    entries = list[OutputChunk]()
    while not buffer.ended:
        entries += buffer.take()
    return [*entries, *buffer.take()]


def text_of(entries: list[OutputChunk], stream: LogStream) -> bytes:
    return b"".join([entry.text for entry in entries if entry.stream is stream])


@given(st.lists(st.tuples(st.sampled_from([OUT, ERR]), st.binary(max_size=20).map(lambda b: b.replace(b"\r", b"")))))
def test_both_streams_are_complete_and_in_order(chunks: list[tuple[LogStream, bytes]]) -> None:
    puts = list[int]()
    buffer = OutputBuffer(lambda: puts.append(1))
    entries = list[OutputChunk]()
    for number, (stream, chunk) in enumerate(chunks):
        buffer.put(stream, chunk)
        if number % 3 == 0:
            entries += buffer.take()
    buffer.close()
    entries += taken(buffer)
    assert len(puts) == len(chunks) + 1
    for stream in (OUT, ERR):
        assert text_of(entries, stream) == b"".join([chunk for name, chunk in chunks if name is stream])


def test_long_output_keeps_beginning_and_end() -> None:
    buffer = OutputBuffer(lambda: None)
    count = 200_000
    for number in range(count):
        buffer.put(OUT, b"%07d%s\n" % (number, b"x" * 92))
    assert buffer._head_size + buffer._tail_size <= output_buffer.MAX_HEAD + output_buffer.MAX_TAIL
    buffer.close()
    entries = taken(buffer)
    lines = text_of(entries, OUT).splitlines(keepends=True)
    assert (int(lines[0][:7]), int(lines[-1][:7])) == (0, count - 1)
    [missing] = re.findall(rb"^(\d+) bytes of output are missing", text_of(entries, LogStream.NOTE))
    assert sum(map(len, lines)) + int(missing) == 100 * count
    assert max(len(entry.text) for entry in entries) <= output_buffer.MAX_TEXT


def test_many_small_chunks_share_an_entry() -> None:
    buffer = OutputBuffer(lambda: None)
    for _ in range(20_000):
        buffer.put(OUT, b"x")
    assert len(buffer._head) < 1000
    buffer.close()
    assert text_of(taken(buffer), OUT) == b"x" * 20_000


def test_the_number_of_entries_is_bounded() -> None:
    buffer = OutputBuffer(lambda: None)
    for _ in range(30_000):
        buffer.put(OUT, b"x")
        buffer.put(ERR, b"y")
    assert len(buffer._head) + len(buffer._tail) < 50_000
    buffer.close()
    entries = taken(buffer)
    [missing] = re.findall(rb"^(\d+) bytes of output are missing", text_of(entries, LogStream.NOTE))
    assert len(text_of(entries, OUT) + text_of(entries, ERR)) + int(missing) == 60_000
