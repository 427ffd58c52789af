"""What is told of what a pipeline complained of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.runner.output import MAX_LAST_WORDS, last_words


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"one\nsh: 1: pv: not found\n\n", "sh: 1: pv: not found"),
        (b"gzip: /var/lib/progressd/jobs/1a/input: not in gzip format", "gzip: input: not in gzip format"),
        (b"cannot open '/etc/passwd', nor /x", "cannot open 'passwd', nor x"),
        (b"\x1b[31mbad\x1b[0m \x07page\t3 / 4", "bad page 3 / 4"),
        (b"see https://example.org/a/b", "see https://example.org/a/b"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"x" * 1000, "x" * (MAX_LAST_WORDS - 1) + "…"),
    ],
)
def test_it_is_one_short_line_that_gives_no_path_away(stderr: bytes, words: str) -> None:
    assert last_words(stderr) == words


@given(st.binary())
def test_whatever_it_writes_is_printable_and_short(stderr: bytes) -> None:
    words = last_words(stderr)
    assert len(words) <= MAX_LAST_WORDS
    assert words == "" or words.isprintable()
