"""The text of a log, converted in parts."""

from hypothesis import given
from hypothesis import strategies as st
from progressd.core.events import LogStream
from progressd.core.log_text import LogText
from progressd.engine.log_reader import log_texts
from progressd.files.job_logs import Chunk
from progressd.files.log_file import Piece

TEXTS = st.lists(st.sampled_from([b"a", b"\n", b"\x1b[31m", b"\x1b7", b"\xc3\xa9", b"word " * 9]), max_size=30)
WHOLE = 1 << 20


def piece(text: bytes) -> Piece:
    return Piece(0, 0, "2026-01-31T12:00:00.000Z", LogStream.STDOUT, text)


@given(st.lists(TEXTS.map(b"".join), max_size=5), st.booleans(), st.booleans(), st.integers(16, 100))
def test_parts_are_together_the_whole_text(texts: list[bytes], ansi: bool, times: bool, size: int) -> None:
    chunk = Chunk([piece(text) for text in texts], 7)
    whole, parts = (list(log_texts(LogText(ansi=ansi, times=times), chunk, most)) for most in (WHOLE, size))
    assert len(whole) == 1
    assert b"".join(parts) == whole[0]


def test_a_part_is_short_whatever_the_lines_are() -> None:
    for text in (b"x" * WHOLE, b"x\n" * (WHOLE // 2), b"\x1b[1m" * (WHOLE // 4)):
        parts = list(log_texts(LogText(ansi=True, times=False), Chunk([piece(text)] * 2, 0)))
        assert max(map(len, parts)) <= 2 * 32768
    parts = list(log_texts(LogText(ansi=True, times=False), Chunk([piece(b"x\n")] * 10_000, 0)))
    assert max(map(len, parts)) < 1000  # the overhead of records counts
