"""Lines of a log: every byte is kept, except what a carriage return overwrites."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.output_lines import OutputLines, whole_characters

PARTS = st.lists(st.sampled_from([b"a", b"\xc3\xbc", b"\r", b"\n", b"\r\n", b"10%", b" ", b"\x1b[m"]), max_size=40)
CUTS = st.lists(st.integers(0, 60), max_size=8)


def fed(lines: OutputLines, text: bytes, cuts: list[int]) -> bytes:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return b"".join([lines.feed(text[a:b]) for a, b in itertools.pairwise(ends)]) + lines.end()


def collapsed(text: bytes) -> bytes:
    return b"\n".join([line.rstrip(b"\r").split(b"\r")[-1] for line in text.split(b"\n")])


@given(PARTS, CUTS)
def test_only_the_last_frame_of_a_line_stays(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(parts)
    assert fed(OutputLines(), text, cuts) == collapsed(text)


@given(PARTS, CUTS)
def test_without_carriage_returns_every_byte_stays(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(parts).replace(b"\r", b"")
    lines = OutputLines(8)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    kept = b""
    for a, b in itertools.pairwise(ends):
        kept += lines.feed(text[a:b]) + lines.quiet()
    assert kept + lines.end() == text


@pytest.mark.parametrize(
    ("chunks", "shown"),
    [
        ([b"Password: ", None, b"\n"], [b"", b"Password: ", b"\n"]),
        ([b"\r10%", None, b"\r20%", None, b"\n"], [b"", b"", b"", b"", b"20%\n"]),
        ([b"10%", None, b"\r20%", None, b"\r30%\nnext\n"], [b"", b"10%", b"", b"", b"\r30%\nnext\n"]),
        ([b"10%\r", None, b"20%\r", b"\n"], [b"", b"", b"", b"20%\n"]),
        ([b"a\xc3", None, b"\xbc\n"], [b"", b"a", b"\xc3\xbc\n"]),
    ],
)
def test_a_question_is_shown_during_silence(chunks: list[bytes | None], shown: list[bytes]) -> None:
    lines = OutputLines()
    assert [lines.quiet() if chunk is None else lines.feed(chunk) for chunk in chunks] == shown


@given(st.text(max_size=5), st.integers(0, 20))
def test_a_character_is_never_divided(text: str, cut: int) -> None:
    part = text.encode()[:cut]
    part[: whole_characters(part)].decode()
    assert len(part) - whole_characters(part) < 4


def test_a_long_line_is_passed_on_in_parts() -> None:
    lines = OutputLines(100)
    kept = [lines.feed(b"x" * 60) for _ in range(5)]
    assert max(map(len, kept)) == 120
    assert b"".join(kept) + lines.end() == b"x" * 300
