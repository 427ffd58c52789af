"""Bytes become frames."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.detect.frames import MAX_FED, MAX_FRAME, MAX_JSON, Frame, FrameSplitter
from progressd.detect.output_filter import OutputFilter
from progressd.detect.plan import Plan
from progressd.detect.preset import Adaptation, Preset

OSC = b"\x1b]9;4;1;42\x1b\\"


def frames_of(*chunks: bytes) -> list[Frame]:
    splitter = FrameSplitter()
    found = [frame for chunk in chunks for frame in splitter.feed(chunk)]
    last = splitter.unfinished()
    return [*found, last] if last else found


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in pairwise(places)]


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"1\n2\n", [(b"1", False), (b"2", False)]),
        (b"1\r\n2\r\n", [(b"1", False), (b"2", False)]),
        (b"\r1%\r2%", [(b"1%", True), (b"2%", True)]),
        (b"1%\r2%\rdone 3\n", [(b"1%", True), (b"2%", True), (b"done 3", True)]),
        (b"a 1\x08\x08 2", [(b"a 1", True), (b" 2", True)]),
        (b"1\x1b[2A2\x1b[K", [(b"1", True), (b"2\x1b[K", True)]),
        (b"\x1b[32m1\x1b[0m\n", [(b"\x1b[32m1\x1b[0m", False)]),
        (b"1" + OSC + b"2\n", [(b"1", False), (OSC, True), (b"2", False)]),
        (b"\x1b]9;4;1;42\x07", [(b"\x1b]9;4;1;42\x07", True)]),
        (b"1\r", [(b"1", True)]),
        (b"", []),
        (b"\r\n\r\r\n", []),
    ],
)
def test_output_is_split_into_frames(data: bytes, texts: list[tuple[bytes, bool]]) -> None:
    assert [(frame.text, frame.redraw) for frame in frames_of(data)] == texts


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (b"\x1b[2K\x1b[1;32m1%\x1b[0m", b"1%"),
        (b"\x1b]0;a title\x071%", b"1%"),
        (b"\x1b]8;;http://a/\x1b\\1%\x1b]8;;\x1b\\", b"1%"),
        (b"\x1b(B1%\x1b=\x1b7", b"1%"),
        (b"\x001%\x7f\t", b"1%\x7f\t"),
        (b"1%\x1b[", b"1%"),
        (b"1%\x1b]0;cut", b"1%"),
        ("┃ 1% é".encode(), "┃ 1% é".encode()),
    ],
)
def test_escape_sequences_are_removed(text: bytes, plain: bytes) -> None:
    assert Frame(text, False).plain == plain


PARTS = [b"\r", b"\n", b"\r\n", b"\x08", b"1", b"%", b"ab", b"\x1b", b"\x1b[K", b"\x1b[1A", b"\x1b[", b"A", b"2", OSC]
PARTS += [OSC[:-1], OSC[:5], b"\x1b]9;4;0\x07", b"\\", "é".encode(), b"{"]
OUTPUT = st.lists(st.sampled_from(PARTS), max_size=60).map(b"".join)
CUTS = st.lists(st.integers(0, 1000), max_size=20)


def slow(data: bytes) -> list[tuple[bytes, bool]]:
    """Split without regular expressions, with all bytes at hand."""
    frames, text, redraw, at = list[tuple[bytes, bool]](), b"", False, 0

    def csi(at: int) -> int:
        end = at + 2
        while end < len(data) and end - at - 2 < 16 and data[end : end + 1] in b"0123456789;":
            end += 1
        return end + 1 - at if data[end : end + 1] and data[end] in b"ABEFGHdf" else 0

    def osc(at: int) -> int:
        end = at + 6
        while end < len(data) and end - at - 6 < 16 and data[end : end + 1] in b"0123456789;":
            end += 1
        return next((end + len(tail) - at for tail in (b"\x07", b"\x1b\\") if data[end:].startswith(tail)), 0)

    while at < len(data):
        length, ends_redraw, sequence = 0, True, False
        if data[at:].startswith((b"\r\n", b"\n")):
            length, ends_redraw = data[at : at + 2].index(b"\n") + 1, False
        elif data[at] in b"\r\x08":
            length = 1
        elif data[at:].startswith(b"\x1b["):
            length = csi(at)
        elif data[at:].startswith(b"\x1b]9;4;"):
            length, sequence = osc(at), True
        if not length:
            text += data[at : at + 1]
            at += 1
            continue
        if text:
            frames.append((text, redraw or (ends_redraw and not sequence)))
        if sequence:
            frames.append((data[at : at + length], True))
        else:
            redraw = ends_redraw
        text = b""
        at += length
    return [*frames, (text, redraw)] if text else frames


@given(OUTPUT, CUTS)
def test_any_cut_gives_the_frames_of_a_slow_splitter(data: bytes, cuts: list[int]) -> None:
    assert [(frame.text, frame.redraw) for frame in frames_of(*pieces(data, cuts))] == slow(data)


@given(st.integers(0, 3000), st.sampled_from([b"1", b"{", b"\xc3\xa9"]), CUTS)
def test_a_long_frame_is_cut_at_the_limit(length: int, filler: bytes, cuts: list[int]) -> None:
    data = (filler * length)[:length] + b"\n1%\n"
    limit = MAX_JSON if filler == b"{" else MAX_FRAME + 1
    assert [frame.text for frame in frames_of(*pieces(data, cuts))] == [
        part for part in (data[:length][:limit], b"1%") if part
    ]


@pytest.mark.parametrize("end", [b"1/2", b"1/2\x1b[m", b"\x1b[m1/2"])
def test_a_number_that_is_cut_is_not_searched(end: bytes) -> None:
    (frame,) = frames_of(b" " * (MAX_FRAME - len(end)) + end + b"34\n")
    assert b"1/2" not in frame.plain or end.endswith(b"m")
    (frame,) = frames_of(b" " * (MAX_FRAME - len(end)) + end + b"\n")
    assert b"1/2" in frame.plain


def test_the_end_of_a_large_chunk_is_split() -> None:
    splitter = FrameSplitter()
    splitter.feed(b"an unfinished 1")
    found = splitter.feed(b"1%\n" * MAX_FED + b"99%\n5")
    assert found[-1] == Frame(b"99%", False)
    assert {frame.text for frame in found} == {b"1%", b"99%"}
    assert splitter.unfinished() == Frame(b"5", False)


@pytest.mark.parametrize("filler", [b"1", b"y\n", b"\x1b", b"\x1b]9;4;1;50", b"\r", b"{", b"\x08", b"\x1b[1"])
def test_memory_is_bounded(filler: bytes) -> None:
    splitter = FrameSplitter()
    for _ in range(20):
        splitter.feed(filler * (65536 // len(filler)))
    last = splitter.unfinished()
    assert last is None or len(last.text) <= MAX_JSON


def filtered(*chunks: bytes, redraws: bool = True) -> bytes:
    adaptation = Adaptation(arguments=("-p",), hide=r"^\s*\d+%$", hide_redraws=redraws)
    output = OutputFilter(Plan(("x",), preset=Preset(), adaptation=adaptation))
    return b"".join(map(output.feed, chunks)) + output.end()


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"a\n\r 1%\r 2%\r100%\nb\n", b"a\nb\n"),
        (b"a\n 1%\r 2%\rb\n", b"a\nb\n"),
        (b"a\r\n 1%\r\r\nb\r\n", b"a\r\n\r\nb\r\n"),
        (b"1%\nb", b"1%\nb"),
        (b"\r1%", b""),
        (b"\rb\r", b"\rb\r"),
        (b"\r\r\n", b"\r\r\n"),
        (b"> ", b"> "),
        (b"", b""),
    ],
)
def test_only_hidden_frames_are_removed(data: bytes, seen: bytes) -> None:
    assert filtered(data) == seen
    assert filtered(*(data[at : at + 1] for at in range(len(data)))) == seen


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"b%", b"1", b"\x1b[K"]), max_size=40).map(b"".join), CUTS
)
def test_other_output_is_unchanged_for_any_cut(data: bytes, cuts: list[int]) -> None:
    assert filtered(*pieces(data, cuts)) == data


@given(OUTPUT, CUTS)
def test_a_filter_removes_the_same_for_any_cut(data: bytes, cuts: list[int]) -> None:
    assert filtered(*pieces(data, cuts)) == filtered(data)


def test_a_prompt_is_shown_during_silence() -> None:
    adaptation = Adaptation(arguments=("-p",), hide=r"^\d+%$", hide_redraws=False)
    output = OutputFilter(Plan(("x",), preset=Preset(), adaptation=adaptation))
    assert output.feed(b"password: ") == b""
    assert output.quiet() == b"password: "
    assert output.feed(b"\n7") == b"\n"
    assert output.feed(b"%") == b""
    assert output.quiet() == b""
    assert output.feed(b"\nb") + output.end() == b"b"
