import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.eta import (
    JUMP,
    PARTS,
    STEADY,
    Estimator,
    Expected,
    Run,
    RunStep,
    expected,
    shape_of,
    step_hash,
    usual_steps,
    words_of,
)
from progressd.core.messages import Eta

QUICK = tuple(math.sqrt(number / PARTS) for number in range(PARTS + 1))
LATE = (0.5, *[1.0] * PARTS)
STRAIGHT = tuple(number / PARTS for number in range(PARTS + 1))
fractions = st.floats(0, 1)
runs = st.builds(
    Run,
    st.lists(st.sampled_from(["tar", "-czf", "a.tgz", "b.tgz", "/home"]), max_size=5).map(tuple),
    st.floats(1, 1e6).map(lambda seconds: round(seconds, 2)),
    st.integers(0, 2**53),
    st.sampled_from([(), LATE, QUICK, STRAIGHT]),
)
histories = st.builds(expected, st.lists(runs, max_size=4), st.just(("tar", "-czf", "a.tgz")), st.integers(0, 2**53))
reported = st.none() | st.just(0.0) | st.floats(0.1, 1e6)
events = st.lists(st.tuples(st.floats(0, 1e6), fractions, reported), max_size=30)


def run(seconds: float, size: int = 100, curve: tuple[float, ...] = STRAIGHT, words: str = "tar a") -> Run:
    return Run(tuple(words.split()), seconds, size, curve)


def known(*earlier: Run, words: str = "tar a", size: int = 100) -> Expected:
    found = expected(earlier, tuple(words.split()), size)
    assert found is not None
    return found


def estimated(estimator: Estimator, elapsed: float, done: float) -> Eta:
    eta = estimator.estimate(elapsed, done)
    assert eta is not None
    return eta


def test_the_first_estimate_assumes_constant_speed() -> None:
    eta = estimated(Estimator(), 10, 5 / 12)
    assert (eta.source, eta.runs) == ("rate", 0)
    assert eta.low < eta.seconds < eta.high
    assert eta.seconds == pytest.approx(14, rel=0.2)


@pytest.mark.parametrize(("elapsed", "done"), [(10, 0), (0, 0.5)])
def test_without_speed_and_earlier_runs_nothing_is_known(elapsed: float, done: float) -> None:
    assert Estimator().estimate(elapsed, done) is None


def test_earlier_runs_give_an_estimate_before_any_progress() -> None:
    eta = estimated(Estimator(known(run(60), run(62), run(58)), 100), 0, 0)
    assert eta.source == "history"
    assert eta.runs == 3
    assert 58 <= eta.seconds <= 62


def test_a_longer_run_still_has_time_left() -> None:
    estimator = Estimator(known(run(60), run(60)), 0)
    assert all(estimated(estimator, elapsed, 0).seconds > 0 for elapsed in range(10, 600, 10))


def test_the_speed_overrules_earlier_runs_in_the_end() -> None:
    estimator = Estimator(known(run(60), run(60), run(60)), 100)
    etas = [estimated(estimator, elapsed, elapsed / 600) for elapsed in range(0, 541, 5)]
    assert etas[0].source == "history"
    assert etas[-1].source == "rate"
    assert etas[-1].seconds == pytest.approx(60, rel=0.2)


def test_earlier_runs_tell_what_a_percentage_is_worth() -> None:
    # the first half of the percentage takes a tenth of the time
    bent = tuple(0.1 * part / 0.5 if part <= 0.5 else 0.1 + 0.9 * (part - 0.5) / 0.5 for part in STRAIGHT)
    eta = estimated(Estimator(known(*[run(100, curve=bent)] * 5), 100), 10, 0.5)
    assert eta.seconds == pytest.approx(90, rel=0.2)


def test_the_duration_of_earlier_runs_is_scaled_by_size() -> None:
    earlier = [run(10 * size / 100, size) for size in (100, 200, 400)]
    assert known(*earlier, size=800).seconds == pytest.approx(80, rel=0.01)


def test_a_fixed_duration_is_not_scaled_by_size() -> None:
    earlier = [run(10, size) for size in (100, 200, 400)]
    assert known(*earlier, size=800).seconds == pytest.approx(10, rel=0.01)


def test_the_most_similar_commands_count() -> None:
    earlier = [
        run(10, words="tar -czf 1.tgz /etc"),
        run(500, words="tar -czf 2.tgz /home"),
        run(12, words="tar -czf 3.tgz /etc"),
    ]
    found = known(*earlier, words="tar -czf 4.tgz /etc")
    assert found.runs == 2
    assert 10 < found.seconds < 12


def test_runs_that_differ_have_a_wide_interval() -> None:
    steady, varying = known(*[run(60)] * 5), known(*map(run, (20, 60, 180, 40, 90)))
    assert varying.variance > 3 * steady.variance


@pytest.mark.parametrize("done", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("history", [None, known(run(60))])
def test_the_estimate_of_the_producer_is_used(done: float, history: Expected | None) -> None:
    eta = Estimator(history, 100).estimate(10, done, 300.0)
    assert eta == Eta(300.0, 240.0, 375.0, "producer", 0)


@pytest.mark.parametrize("history", [None, known(run(60))])
def test_the_estimate_of_the_producer_may_jump(history: Expected | None) -> None:
    estimator = Estimator(history, 3)
    estimated(estimator, 1, 1 / 3)
    estimated(estimator, 4, 2 / 3)
    for elapsed, left in ((4.1, 90.0), (4.2, 4.0), (4.3, 700.0)):
        assert estimator.estimate(elapsed, 2 / 3, left) == Eta(left, left * 0.8, left * 1.25, "producer", 0)


def test_the_estimate_of_the_producer_counts_down_for_half_of_its_time() -> None:
    estimator = Estimator(None, 100)
    estimated(estimator, 100, 0.5)
    estimator.estimate(110, 0.5, 90.0)
    assert estimated(estimator, 120, 0.6) == Eta(80.0, 64.0, 100.0, "producer", 0)
    assert estimated(estimator, 154, 0.8) == Eta(46.0, 36.8, 57.5, "producer", 0)
    after = estimated(estimator, 155, 0.8)
    assert after.source == "rate"
    assert 45 - after.seconds <= 1 + 45 * JUMP / 155 + 0.1


@pytest.mark.parametrize("left", [0.1, 5000.0])
def test_zero_withdraws_the_estimate_of_the_producer(left: float) -> None:
    estimator = Estimator(None, 100)
    estimated(estimator, 1000, 0.5)
    estimator.estimate(1000, 0.5, left)
    eta = estimator.estimate(1001, 0.5, 0.0)
    assert eta is not None
    assert eta.source == "rate"
    assert eta.seconds == pytest.approx(1000, rel=0.2)
    again = estimator.estimate(1002, 0.9, 0.0)  # does not jump
    assert again is not None
    assert again.seconds == pytest.approx(eta.seconds, rel=0.02)


@pytest.mark.parametrize("left", [None, 90.0])
def test_the_estimate_of_the_producer_ends_with_the_steps(left: float | None) -> None:
    estimator = Estimator(None, 100)
    estimator.estimate(100, 0.5, 90.0)
    eta = estimator.estimate(101, 1.0, left)
    assert eta is not None
    assert eta.seconds == 0


def test_a_pause_does_not_erase_the_speed() -> None:
    estimator = Estimator()
    assert estimated(estimator, 10, 0.5).seconds < estimated(estimator, 100, 0.5).seconds


def test_a_done_job_has_no_time_left() -> None:
    assert estimated(Estimator(), 10, 1.0).seconds == 0
    assert estimated(Estimator(known(run(60)), 100), 10, 1.0).seconds == 0


def test_more_steps_than_before_lead_to_a_new_estimate() -> None:
    estimator = Estimator(None, 100)
    before = estimated(estimator, 10, 0.5)
    estimator.use(None, 1000)
    assert estimated(estimator, 10.1, 0.05).seconds > 5 * before.seconds


@given(histories, events)
def test_no_estimate_is_negative_or_outside_its_interval(
    history: Expected | None, reports: list[tuple[float, float, float | None]]
) -> None:
    estimator = Estimator(history, 100)
    for elapsed, done, left in reports:
        eta = estimator.estimate(elapsed, done, left)
        if eta is not None:
            assert 0 <= eta.low <= eta.seconds <= eta.high < math.inf


@given(histories, st.lists(st.tuples(st.floats(0.2, 1000), st.floats(0, 0.2), reported), min_size=2, max_size=30))
def test_the_remaining_time_does_not_jump(
    history: Expected | None, reports: list[tuple[float, float, float | None]]
) -> None:
    estimator, elapsed, done, shown = Estimator(history, 100), 0.0, 0.0, list[tuple[float, float | None, Eta]]()
    for passed, moved, left in reports:
        elapsed, done = elapsed + passed, min(done + moved, 0.99)
        eta = estimator.estimate(elapsed, done, left)
        if eta is not None and estimator.place < 1 and estimator.elapsed == elapsed:  # otherwise it is the last one
            shown.append((elapsed, left, eta))
    for (earlier, _, before), (later, left, after) in pairwise(shown):
        if left:
            assert after.source == "producer"
            assert after.seconds == pytest.approx(left, abs=0.06)
            continue
        if left == 0 and before.source == "producer":
            continue
        passed = later - earlier
        aged = max(before.seconds - passed, 0)
        allowed = passed + aged * min(JUMP * passed / later, 1) + 0.16  # rounding of both
        assert abs(after.seconds - aged) <= allowed or after.seconds <= aged * STEADY + 0.16


@given(histories, st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 0.2)), max_size=30))
def test_a_completed_run_has_a_rising_curve(history: Expected | None, reported: list[tuple[float, float]]) -> None:
    estimator, elapsed, done = Estimator(history, 100), 0.0, 0.0
    for passed, moved in reported:
        elapsed, done = elapsed + passed, min(done + moved, 1.0)
        estimator.estimate(elapsed, done)
    curve = estimator.run(("tar",), elapsed + 1).curve
    assert list(curve) == sorted(curve)
    assert not curve or (len(curve) == PARTS + 1 and curve[0] >= 0 and curve[-1] <= 1)


def test_events_that_arrive_together_share_an_estimate() -> None:
    estimator = Estimator()
    first = estimator.estimate(10, 0.51)
    assert estimator.estimate(10.1, 0.511) is first
    assert estimator.estimate(10.6, 0.512) is not first


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (None, ""),
        ("/usr/bin/tar -czf backup-2026-12-01.tgz /home /etc", "tar -czf *"),
        ("rsync -a --bwlimit=1000 /a /b", "rsync -a --bwlimit *"),
        ("make -j4", "make -j"),
        ("Training of run 17", "Training *"),
    ],
)
def test_the_shape_of_a_command_has_no_values(name: str | None, shape: str) -> None:
    assert shape_of(name) == shape


def test_words_are_bounded() -> None:
    words = words_of("x" * 255, {"key": "y" * 65000, **{str(number): number for number in range(100)}})
    assert len(words) <= 40
    assert max(map(len, words)) <= 80


def test_words_are_hashes() -> None:
    words = words_of("tar \ud800", {"password": "hunter2"})
    assert words[0] == words_of("tar", {})[0]
    assert len(set(words)) == 3
    assert "hunter2" not in str(words)


def stepped(*steps: tuple[str, float, float], seconds: float = 10, size: int = 100, words: str = "tar a") -> Run:
    found = tuple(RunStep(step_hash(name, None), after, lasts) for name, after, lasts in steps)
    return Run(tuple(words.split()), seconds, size, STRAIGHT, found)


def test_usual_steps_are_medians_of_similar_runs() -> None:
    earlier = [
        stepped(("page 1 of 2", 0, 4), ("rare", 4, 1), ("write", 5, 1)),
        stepped(("page 7 of 9", 0, 6), ("write", 6, 3)),
        stepped(("page 1 of 1", 0, 5), ("write", 4, 2)),
        stepped(("other", 0, 1), words="rsync b"),
    ]
    found = usual_steps(earlier, ("tar", "a"), 100)
    assert [(step.name, step.after, step.seconds, count) for step, count in found] == [
        (step_hash("page 3 of 4", None), 0, 5, 3),
        (step_hash("write", None), 5, 2, 3),
    ]
    assert step_hash("write", "phase") != step_hash("write", None)
    assert usual_steps([run(5)], ("tar", "a"), 100) == []
    assert msgspec.convert(msgspec.to_builtins(earlier[0])[:4], Run).steps == ()  # of an earlier version
