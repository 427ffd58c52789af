"""Progress patterns: matches, the searched part of a line, and invalid patterns."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.errors import InvalidInput
from progressd.core.event_limits import MAX_STEP_NAME
from progressd.core.events import ReportedProgress
from progressd.core.progress_pattern import MAX_SEARCHED, ProgressPattern
from support.waiting import PATIENCE

STEPS = r"(?P<current>\d+)/(?P<total>\d+)"
PERCENT = r"(?P<percent>\d+)%"


@pytest.mark.parametrize(
    ("pattern", "line", "found"),
    [
        (STEPS, b"page 5/12 upscaling", ReportedProgress(5, 12)),
        (STEPS + r" (?P<step>.*)", "5/12 über".encode(), ReportedProgress(5, 12, "über")),
        (STEPS + r" (?P<step>.*)", b"5/12 \xff!", ReportedProgress(5, 12, "\ufffd!")),
        (STEPS + r"(?P<step> \w+)?", b"5/12", ReportedProgress(5, 12)),
        (PERCENT, b"45% of 99%", ReportedProgress(0, 0, "", 45)),
        (PERCENT, b"no numbers", None),
        (r"^(?P<percent>[0-9]+)$", b"45", ReportedProgress(0, 0, "", 45)),
        (r"(?i)DONE (?P<percent>[\d.]+)", b"done 4.5", ReportedProgress(0, 0, "", 4.5)),
    ],
)
def test_progress_is_found(pattern: str, line: bytes, found: ReportedProgress | None) -> None:
    assert ProgressPattern(pattern).find(line) == found


@given(st.text(alphabet="0123456789/ ab\n%.", max_size=60), st.sampled_from([STEPS, PERCENT, r"^(?P<percent>\d+)$"]))
def test_a_short_line_matches_as_in_python(text: str, pattern: str) -> None:
    text = text.replace("\n", "")
    expected = re.search(pattern, text)
    found = ProgressPattern(pattern).find(text.encode())
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        numbers = {"percent": found.percent, "current": found.current_step, "total": found.total_steps}
        assert {name: int(number) for name, number in expected.groupdict().items()}.items() <= numbers.items()


def test_progress_in_a_long_line_is_found() -> None:
    assert ProgressPattern(STEPS).find(b"[5/120] c++ " + b"-Dx " * 20_000) == ReportedProgress(5, 120)


def test_only_the_beginning_of_a_line_is_searched() -> None:
    pattern = ProgressPattern(STEPS)
    assert pattern.find(b" " * (MAX_SEARCHED - 4) + b"5/12") == ReportedProgress(5, 12)
    assert pattern.find(b" " * MAX_SEARCHED + b"5/12") is None


@pytest.mark.parametrize("pattern", [STEPS, STEPS + ".*"])
def test_a_cut_number_is_not_progress(pattern: str) -> None:
    assert ProgressPattern(pattern).find(b" " * (MAX_SEARCHED - 3) + b"5/120") is None


def test_a_long_step_is_cut() -> None:
    found = ProgressPattern(STEPS + " (?P<step>.*)").find(b"5/12 " + b"x" * 20_000)
    assert found == ReportedProgress(5, 12, "x" * MAX_STEP_NAME)


def test_a_match_must_be_a_number() -> None:
    with pytest.raises(InvalidInput, match=r"^the progress pattern found no numbers: "):
        ProgressPattern(r"(?P<percent>\w+)%").find(b"lots%")


@pytest.mark.parametrize(
    ("pattern", "line"), [("(a+)+$(?P<percent>)", "a" * 100 + "!"), (STEPS, "1" * 65536), (STEPS, "1/" * 32768)]
)
def test_no_line_takes_long(pattern: str, line: str) -> None:
    program = (
        "import sys\nfrom progressd.core.progress_pattern import ProgressPattern\n"
        "for _ in range(100): ProgressPattern(sys.argv[1]).find(sys.argv[2].encode())"
    )
    subprocess.run([sys.executable, "-c", program, pattern, line], timeout=PATIENCE, check=True)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"(?P<percent>\d+)(?=%)", "invalid perl operator: (?= (use the syntax of RE2, https://"),
        (r"(?P<percent>\d)\1", r"invalid escape sequence: \1 (use the syntax of RE2, https://"),
        (r"(?P<percent>\d+)\Z", r"invalid escape sequence: \Z (use"),
        (r"(?P<percent>\d{2000})", "invalid repetition size: {2000} (use"),
        ("(?P<percent>\udcff)", "invalid UTF-8"),
        ("(?P<percent>x", "is not a regular expression: missing )"),
        (r"(?P<percent>(?:(?:\w?){50}){20})", "is too complex: use * or + instead of counted repetitions"),
        (r"(?P<percent>\d+)%|(?P<percent>\d+) percent", "names a group twice: put the alternatives into one group"),
        ("(?P<current>x)", "needs the named groups (?P<current>…) and (?P<total>…), or (?P<percent>…)"),
        ("(?P<percent>x)(?P<y>)", "(?P<y>…) is not one of current, eta, fraction, percent, phase, rate, step, total"),
    ],
)
def test_an_unusable_pattern_is_rejected_with_the_reason(
    pattern: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        ProgressPattern(pattern)
    assert capfd.readouterr().err == ""
