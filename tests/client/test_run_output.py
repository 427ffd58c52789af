"""The output of a command is passed on byte for byte, whatever its chunks are."""

import os
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.client.run.output import CHUNK, MAX_TAIL, OutputPump
from progressd.core.last_lines import RULES, last_lines

COUNT = 256  # chunks of a flood; to search all of them would take half a minute


class Pumped:
    """A pump between two pipes."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.output, self._to = os.pipe()
        self.searched = list[bytes]()
        self.looks = 0
        self.errors = list[OSError]()
        self.pump = OutputPump(self.reading, self._to, self.searched.append, self._look, self.errors.append)
        self.pump.start()

    def _look(self) -> None:
        self.looks += 1

    def end(self) -> bytes:
        """End the input, and return the whole output."""
        os.close(self.writing)
        self.pump.close()
        os.close(self._to)
        os.close(self.reading)
        with open(self.output, "rb") as output:
            return output.read()


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20))
def test_output_is_passed_on_and_searched(chunks: Sequence[bytes]) -> None:
    pumped = Pumped()
    for chunk in chunks:
        os.write(pumped.writing, chunk)
    assert pumped.end() == b"".join(chunks) == b"".join(pumped.searched)
    assert pumped.pump.tail == b"".join(chunks)[-MAX_TAIL:]
    assert pumped.looks >= 1


def test_a_flood_is_passed_on_but_only_sampled() -> None:
    pumped = Pumped()
    flood = b"x" * CHUNK
    total = 0
    with open(pumped.output, "rb", closefd=False, buffering=0) as output:
        for _ in range(COUNT):
            os.write(pumped.writing, flood[: CHUNK // 2])
            size = 0
            while size < CHUNK // 2:
                size += len(output.read(CHUNK))
            total += size
    assert pumped.end() == b""
    assert total == COUNT * CHUNK // 2
    assert max(map(len, pumped.searched)) <= CHUNK
    whole, sampled = (sum(1 for one in pumped.searched if one.startswith(first)) for first in (b"x", b"\n"))
    assert whole + sampled < COUNT or sampled


def test_a_lost_reader_closes_the_commands_pipe() -> None:
    pumped = Pumped()
    os.close(pumped.output)
    os.write(pumped.writing, b"text")
    pumped.pump.close()
    with pytest.raises(BrokenPipeError):
        os.write(pumped.writing, b"more")
    assert pumped.errors == []
    os.close(pumped.writing)
    os.close(pumped._to)


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"", []),
        (b"\n \n\x1b[0m\n", []),
        (b"one\ntwo\nthree\nfour\n", ["two", "three", "four"]),
        (b"1%\r2%\r\x1b[K\nlink_stat failed (2)\nerror (code 23)\n", ["2%", "link_stat failed (2)", "error (code 23)"]),
        (b'Traceback:\n  File "x.py"\n    y()\nValueError: no\n', ["Traceback:", "ValueError: no"]),
        (b"\x1b[31mred\x1b[0m \x1b]9;4;1;42\x07text\x07\n", ["red text"]),
        (b"==== summary ====\n----\n", ["summary"]),
        (b"caf\xc3\xa9 \xff", ["café �"]),
    ],
)
def test_the_last_lines_are_text(written: bytes, lines: Sequence[str]) -> None:
    assert last_lines(written, 3) == lines


@given(st.binary())
def test_any_output_has_printable_last_lines(written: bytes) -> None:
    for line in last_lines(written, 3):
        assert line.isprintable()
        assert line.strip(RULES) == line != ""
