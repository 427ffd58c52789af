"""The progress of a run from many frames: phases, restarts, nested bars and growing totals."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.detect.detector import LARGE, PATIENCE, SAMPLED, STDOUT, Detector
from progressd.detect.plan import Plan, plan
from progressd.detect.preset_loader import Presets
from progressd.detect.reading import Reading
from progressd.detect.rules import reading_of
from progressd.detect.track import Track

PRESETS = Presets()


def percents(track: Track, *readings: Reading) -> list[float | None]:
    return [track.move(reading).percent for reading in readings]


def at(percent: float, phase: str = "") -> Reading:
    return Reading(percent=percent, phase=phase)


def test_a_percentage_never_falls() -> None:
    assert percents(Track({}), at(10), at(50), at(40), at(60), at(100), at(99)) == [10, 50, 50, 60, 100, 100]


def test_the_unit_and_the_known_phase_are_reported() -> None:
    track = Track({"read": 10, "write": 90}, labels={"write": "Writing"})
    moved = track.move(Reading(current=5, total=10, unit="B", phase="write", rate=3))
    assert (moved.unit, moved.phase, moved.rate, moved.step_name) == ("B", "Writing", None, "Writing")
    moved = track.move(Reading(percent=60, unit="B", phase="a file", rate=3))
    assert (moved.unit, moved.phase, moved.rate) == ("B", None, 3)
    moved = track.move(Reading(percent=61, unit="B"))
    assert (moved.unit, moved.phase, moved.rate) == (None, None, None)
    units = [track.move(Reading(current=6, total=10, unit=unit)).unit for unit in ("", "", "B")]
    assert units == ["", None, "B"]


def test_each_id_is_a_task() -> None:
    track = Track({})
    for current in (2, 10):
        track.move(Reading(current=5, total=30, unit="B", id="b"))
        moved = track.move(Reading(current=current, total=10, unit="B", id="a"))
    assert (moved.current_step, moved.total_steps, moved.percent) == (15, 40, 37.5)
    assert [(task.id, task.current, task.total, task.unit, task.state) for task in moved.tasks] == [
        ("b", 5, 30, "B", "processing"),
        ("a", 10, 10, "B", "completed"),
    ]
    for number in range(60):
        moved = track.move(Reading(current=5, total=30, id=f"{number}"))
    assert moved.tasks == ()


def test_a_total_may_grow() -> None:
    readings = [Reading(current=current, total=total) for current, total in ((10, 20), (12, 40), (30, 40), (50, 40))]
    assert percents(Track({}), *readings) == [50, 50, 75, 100]


def test_a_growing_total_is_not_used() -> None:
    readings = [Reading(current=n, total=total, grows=True) for n, total in ((1, 10), (2, 20), (3, 20), (10, 20))]
    assert percents(Track({}), *readings) == [None, None, 15, 50]


def test_known_phases_have_their_shares() -> None:
    track = Track({"a": 10, "b|c": 70, "d": 20})
    readings = [at(50, "A"), at(100, "a"), at(0, "c"), at(50, "c"), at(100, "c"), at(100, "d")]
    assert percents(track, *readings) == [5, 10, 10, 45, 80, 100]


def test_a_skipped_phase_is_passed() -> None:
    assert percents(Track({"a": 10, "b": 70, "d": 20}), at(50, "b"), at(50, "a"), at(0, "d")) == [45, 45, 80]


def test_unknown_phases_share_what_is_left() -> None:
    track = Track({"a": 100})
    assert percents(track, at(100, "x"), at(0, "y"), at(100, "y"), at(0, "z")) == [50, 50, 75, 75]


def test_one_unknown_phase_is_the_whole() -> None:
    track = Track({})
    assert percents(track, at(0, "x"), at(60, "x"), at(70, "other words"), at(100, "x")) == [0, 60, 70, 100]


def test_a_phase_after_a_finished_one_holds_the_percentage() -> None:
    track = Track({})
    found = [track.move(reading) for reading in (at(100, "x"), at(0, "y"), at(50, "y"))]
    assert [one.percent for one in found] == [100, 100, 100]
    assert [one.step_name for one in found] == ["x", "y", "y"]


def test_many_items_each_get_half_of_what_is_left() -> None:
    track = Track({}, many=True)
    assert percents(track, at(50), at(100), at(0), at(100), at(0), at(100)) == [25, 50, 50, 75, 75, 87.5]


def test_a_known_number_of_items_share_the_whole() -> None:
    readings = [at(50), at(100), at(0), at(100), at(0), at(100)]
    assert percents(Track({}, items=2), *readings) == [25, 50, 50, 100, 100, 100]
    assert percents(Track({}, many=True, items=1), at(50), at(100)) == [50, 100]
    assert percents(Track({}, many=True, items=4), at(50, "a"), at(100, "a"), at(0, "b"), at(50, "b")) == [
        12.5,
        25,
        25,
        37.5,
    ]


def test_the_position_of_an_item_gives_the_percentage() -> None:
    track = Track({}, many=True)
    readings = [at(50), at(0), at(50), at(100)]
    for reading, item in zip(readings, (1, 2, 2, 4), strict=True):
        reading.item, reading.items = item, 4
    assert percents(track, *readings) == [12.5, 25, 37.5, 100]


def test_an_inner_bar_moves_within_a_step() -> None:
    def outer(n: int) -> Reading:
        return Reading(current=n, total=4, phase="epochs")

    def inner(n: int) -> Reading:
        return Reading(current=n, total=10, phase="batches")

    readings = [outer(0), inner(0), inner(5), inner(10), outer(1), inner(0), inner(5), outer(2), outer(4)]
    assert percents(Track({}), *readings) == [0, 0, 12.5, 25, 25, 25, 37.5, 50, 100]


def test_ids_are_added_up() -> None:
    def layer(id_: str, current: float, total: float) -> Reading:
        return Reading(current=current, total=total, id=id_)

    track = Track({})
    assert percents(track, layer("a", 10, 100), layer("b", 40, 100), layer("a", 100, 100)) == [10, 25, 70]
    for number in range(1000):
        track.move(layer(str(number), 1, 1))


def test_a_count_without_a_total_has_no_percentage() -> None:
    found = Track({}).move(Reading(current=12))
    assert (found.current_step, found.total_steps, found.percent) == (12, 0, None)


READINGS = st.builds(
    Reading,
    current=st.none() | st.floats(0, 1e18),
    total=st.none() | st.floats(0, 1e18),
    percent=st.none() | st.floats(0, 1000),
    phase=st.sampled_from(["", "a", "b", "c", "x 1/3"]),
    item=st.none() | st.floats(0, 9),
    items=st.none() | st.floats(0, 9),
    id=st.sampled_from(["", "", "i", "j"]),
    resets=st.booleans(),
    grows=st.booleans(),
)


@given(st.lists(READINGS, max_size=40), st.sampled_from([{}, {"a": 1, "b": 3}, {"a": 0}]), st.booleans())
def test_any_readings_give_percentages_that_rise(readings: list[Reading], shares: dict[str, float], many: bool) -> None:
    found = [percent for percent in percents(Track(shares, many), *readings) if percent is not None]
    assert found == sorted(found)
    assert all(0 <= percent <= 100 for percent in found)


@given(
    st.lists(
        st.sampled_from([b"\r", b"\n", b"1", b"50%", b"2/5", b"[3/5] ", b"a", b"9 of 12", b"{", b"\x1b]9;4;1;7\x07"])
    )
)
def test_any_output_can_be_searched(parts: list[bytes]) -> None:
    for command in ("x", "rsync a b", "git clone a", "curl a", "pv a"):
        detector = Detector(plan(command.split(), PRESETS))
        detector.feed(STDOUT, b"".join(parts))
        detector.quiet(STDOUT)


@given(st.binary(max_size=2000))
def test_any_bytes_can_be_searched(data: bytes) -> None:
    for command in ("x", "tqdm", "wget a"):
        detector = Detector(plan(command.split(), PRESETS))
        detector.feed(STDOUT, data)
        detector.quiet(STDOUT)


def test_a_sampled_flood_shows_its_end() -> None:
    detector = Detector(Plan(("x",)))
    searched = 0
    for number in range(100):
        line = b"[%d/1000] " % (number + 1)
        searched += bool(detector.feed(STDOUT, (line + b"x" * 90 + b"\n") * (LARGE // 90)))
    assert PATIENCE <= searched + 1 <= PATIENCE + 100 // SAMPLED + 2
    (last,) = detector.quiet(STDOUT)
    assert last.current_step == 100


@pytest.mark.parametrize(
    ("groups", "current", "total", "percent"),
    [
        ({"current": "2.3", "total": "16.9 MB"}, 2.3e6, 16.9e6, None),
        ({"fraction": "0.5833"}, None, None, 58.33),
        ({"fraction": "58"}, None, None, None),
        ({"current": "N/A", "total": "5"}, None, None, None),
        ({"current": "5", "total": "N/A"}, 5, None, None),
        ({"left": "3", "total": "10"}, 7, 10, None),
        ({"current": "9" * 30, "total": "1"}, None, None, None),
        ({"percent": "12,5"}, None, None, 12.5),
    ],
)
def test_groups_are_read(
    groups: dict[str, str], current: float | None, total: float | None, percent: float | None
) -> None:
    found = reading_of(groups)
    assert found.current == (current and pytest.approx(current))
    assert found.total == (total and pytest.approx(total))
    assert found.percent == (percent and pytest.approx(percent))


def test_compressed_output_has_no_progress() -> None:
    detector = Detector(Plan(("gzip", "-c", "a")))
    data = random.Random(1).randbytes(1 << 20)
    found = [detector.feed(STDOUT, data[at : at + 500]) + detector.quiet(STDOUT) for at in range(0, len(data), 500)]
    assert not any(found)
    for percent in range(100):
        assert detector.feed(STDOUT, b"\r\x8f\x03abc %d%%" % percent) + detector.quiet(STDOUT) == []


def test_a_better_source_removes_the_unit() -> None:
    detector = Detector(Plan(("x",)))
    lines = (
        b"\r 10%|#  | 1.00M/10.0M [00:01<00:09, 1.00MB/s]\r",
        b'{"type": "progress_percent", "current": 5, "total": 10}\n',
    )
    assert [progress.unit for line in lines for progress in detector.feed(STDOUT, line)] == ["B", ""]
