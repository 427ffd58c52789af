"""Replay the output of real tools, which `tests/transcripts/record.py` recorded."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.events import ReportedProgress
from progressd.detect.detector import Detector
from progressd.detect.plan import plan
from progressd.detect.preset_loader import Presets
from support.transcripts import CASES, STREAMS, TRANSCRIPTS, Case, chunks_in

PRESETS = Presets()


def chunks_of(name: str) -> list[tuple[int, bytes]]:
    return [(chunk.stream, chunk.text) for chunk in chunks_in(name)]


def replayed(case: Case, chunks: Iterable[tuple[int, bytes]], *, quiet: bool = False) -> list[ReportedProgress]:
    """Return all progress. `quiet`: the tool pauses after each chunk."""
    detector = Detector(plan(case.command.split(), PRESETS))
    found = list[ReportedProgress]()
    for stream, chunk in chunks:
        found += detector.feed(stream, chunk)
        if quiet:
            found += detector.quiet(stream)
    for stream in STREAMS.values():
        found += detector.quiet(stream)
    assert detector.source == case.source
    return found


def test_every_transcript_has_a_case() -> None:
    assert sorted(path.stem for path in TRANSCRIPTS.glob("*.typescript")) == sorted(case.name for case in CASES)


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_tools_progress_is_found_and_never_falls(case: Case, quiet: bool) -> None:
    updates = replayed(case, chunks_of(case.name), quiet=quiet)
    assert len(updates) >= case.updates
    percents = [update.percent for update in updates if update.percent is not None]
    assert percents == sorted(percents)
    if case.last is None:
        assert not percents
        assert updates[-1].current_step > 0
    else:
        assert case.last <= percents[-1] <= 100


@pytest.mark.parametrize(
    ("name", "units", "phases"),
    [
        ("wget-1.25", {"B"}, set()),
        ("rsync-3.5.0", {"B"}, set()),
        ("tqdm-4.70", {"it"}, set()),
        ("git-2.47.3", set(), {"Counting objects", "Compressing objects", "Receiving objects", "Resolving deltas"}),
    ],
)
def test_units_and_phases_are_found(name: str, units: set[str], phases: set[str]) -> None:
    [case] = [case for case in CASES if case.name == name]
    updates = replayed(case, chunks_of(name))
    assert {update.unit for update in updates} - {None} == units
    assert {update.phase for update in updates} - {None} == phases


@given(st.data())
def test_any_cut_gives_the_same_progress(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(CASES))
    streams = dict[int, bytes]()
    chunks = chunks_of(case.name)
    for stream, chunk in chunks:
        streams[stream] = streams.get(stream, b"") + chunk
    if len(streams) > 1:  # the order of the streams matters, so cut each chunk
        length = data.draw(st.integers(1, 200))
        cut = [(s, c[at : at + length]) for s, c in chunks for at in range(0, len(c), length)]
    else:
        ((stream, whole),) = streams.items()
        lengths = data.draw(st.lists(st.integers(1, 1500), min_size=1, max_size=30))
        cut, at = [], 0
        while at < len(whole):
            length = lengths[len(cut) % len(lengths)]
            cut.append((stream, whole[at : at + length]))
            at += length
    assert replayed(case, cut) == replayed(case, chunks)
