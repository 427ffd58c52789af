"""The unit, the rate, the phase, the tasks and the timeline of a job."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from progressd.core.errors import Conflict, InvalidInput
from progressd.core.event_limits import MAX_TASKS
from progressd.core.events import (
    CompletedEvent,
    ProgressEvent,
    RegisterEvent,
    ReportedProgress,
    ReportedTask,
    RequeueEvent,
    StalledEvent,
    StartEvent,
)
from progressd.core.job import Job, apply
from progressd.core.messages import JobStatus, ProgressData, TaskData
from progressd.core.progress import MAX_STEPS, Dropped, Meter, merged_steps, merged_tasks, tasks_percentage
from support.samples import ID, NOW, job

NOTHING_DROPPED = Dropped()
ids = st.sampled_from([f"task-{number}" for number in range(40)])
counts = st.integers(0, 1000)
tasks = st.builds(
    ReportedTask,
    ids,
    st.none() | st.text(min_size=1, max_size=3),
    st.none() | counts,
    st.none() | counts,
    st.none() | st.sampled_from(["B", "pages"]),
    st.none() | st.sampled_from(JobStatus),
)


def after(begun: Job, *reports: tuple[float, dict[str, Any]]) -> Job:
    """Return a job after reports, each with its second."""
    for second, data in reports:
        event = ProgressEvent(ID, msgspec.convert(data, ReportedProgress))
        begun = apply(begun, event, NOW + timedelta(seconds=second)).job
    return begun


def shown(begun: Job) -> Any:
    return msgspec.to_builtins(begun.progress)


@pytest.fixture
def new() -> Job:
    return apply(None, RegisterEvent(ID), NOW).job


def counted(current: int, total: int = 1000, **more: Any) -> dict[str, Any]:
    return {"current_step": current, "total_steps": total, **more}


def test_the_daemon_computes_the_rate(new: Job) -> None:
    moved = after(new, (0, counted(0, unit="B")), (1, counted(100)), (3, counted(300)))
    assert shown(moved) == {
        "current_step": 300,
        "total_steps": 1000,
        "step_name": "",
        "percent": 30,
        "unit": "B",
        "rate": 100.0,
    }


PLAIN = {"current_step", "total_steps", "step_name", "percent", "eta_seconds"}  # the fields that every report may have
DETAILS = {"unit": "B", "rate": 2.0, "phase": "Verify", "tasks": [{"id": "one"}]}


@pytest.mark.parametrize("field", [name for name in ReportedProgress.__struct_fields__ if name not in PLAIN])
def test_each_detail_alone_reaches_a_job_without_details(new: Job, field: str) -> None:
    data = {field: DETAILS[field]}
    assert msgspec.convert(data, ReportedProgress).has_details
    assert shown(after(new, (1, counted(5, **data)))).keys() >= data.keys()


def test_progress_without_details_is_as_before(new: Job) -> None:
    moved = after(new, (1, counted(5, 12, step_name="Scan")), (2, counted(6, 12, step_name="Scan")))
    assert shown(moved).keys() == {"current_step", "total_steps", "step_name", "percent"}
    assert moved.detail is None


def test_a_report_of_the_remaining_time_keeps_the_rest(new: Job) -> None:
    begun = after(new, (0, counted(5, 12, step_name="Scan", percent=60)), (1, {"eta_seconds": 90}))
    assert shown(begun) == {"current_step": 5, "total_steps": 12, "step_name": "Scan", "percent": 60}


def test_a_percentage_alone_keeps_the_counts(new: Job) -> None:
    assert shown(after(new, (0, {"percent": 58.5}))).items() >= {"current_step": 0, "percent": 58}.items()
    begun = after(new, (0, counted(5, 12, step_name="Scan")), (1, {"percent": 58.5}))
    assert shown(begun) == {"current_step": 5, "total_steps": 12, "step_name": "Scan", "percent": 58}


@pytest.mark.parametrize(
    ("report", "done"),
    [
        (counted(5, 12), (5, 12, None)),
        (counted(0, 0, percent=45.5), (0, 0, 45.0)),
        ({"tasks": [{"id": "a", "current": 1, "total": 4}]}, (0, 0, 25.0)),
    ],
)
def test_a_report_without_counts_does_not_move_the_estimate(
    report: dict[str, Any], done: tuple[int, int, float | None], new: Job
) -> None:
    estimated = list[ReportedProgress]()

    def forecast(_: Job, report: ReportedProgress, __: datetime) -> None:
        estimated.append(report)

    event = ProgressEvent(ID, ReportedProgress(eta_seconds=90))
    apply(after(new, (0, report)), event, NOW + timedelta(seconds=1), forecast)
    [given] = estimated
    assert (given.current_step, given.total_steps, given.percent, given.eta_seconds) == (*done, 90)


@pytest.mark.parametrize("detail", [{"phase": ""}, {"unit": ""}])
def test_an_empty_detail_keeps_the_counts(detail: dict[str, str], new: Job) -> None:
    assert shown(after(new, (0, counted(5, 12)), (1, detail)))["percent"] == 41


@pytest.mark.parametrize("data", [{}, {"step_name": "Scan"}, {"current_step": 1}, {"total_steps": 1}])
def test_a_report_without_counts_needs_a_detail(data: dict[str, Any], new: Job) -> None:
    for begun in (new, after(new, (0, counted(1, unit="B")))):
        with pytest.raises(InvalidInput, match="missing required field"):
            after(begun, (1, data))


def test_an_empty_unit_or_phase_removes_the_one_before(new: Job) -> None:
    begun = after(new, (0, counted(0, unit="B", phase="Read")), (1, counted(5, unit="")), (2, {"phase": ""}))
    assert shown(begun).keys() == {"current_step", "total_steps", "step_name", "percent"}
    assert after(new, (0, counted(5, unit="", phase=""))).detail is None
    assert after(new, (0, {"phase": ""})).progress.current_step == 0


def test_a_rate_of_the_producer_is_shown(new: Job) -> None:
    moved = after(new, (0, {"percent": 12.5, "rate": 3.5, "unit": "MB"}))
    assert (moved.progress.rate, moved.progress.percent) == (3.5, 12)


def test_a_new_phase_or_unit_restarts_the_rate(new: Job) -> None:
    begun = after(new, (0, counted(0, unit="B", phase="Read")), (1, counted(100)))
    assert begun.progress.rate == 100
    for data in (counted(200, phase="Write"), counted(200, unit="files"), counted(5), {"phase": ""}):
        assert after(begun, (2, data)).progress.rate is msgspec.UNSET
    stalled = apply(begun, StalledEvent(ID), NOW + timedelta(seconds=60)).job
    assert stalled.progress.rate is msgspec.UNSET


def test_a_pause_lowers_the_rate(new: Job) -> None:
    steady = after(new, *[(second, counted(100 * second, 10**6, unit="B")) for second in range(61)])
    assert steady.progress.rate == 100
    burst = after(steady, (60.2, counted(7000, 10**6)), (60.21, counted(8000, 10**6)))
    assert 100 < burst.progress.rate < 120  # type: ignore[operator]
    paused = after(steady, (75, counted(6000, 10**6)), (90, counted(6000, 10**6)))
    assert 0 < paused.progress.rate < 20  # type: ignore[operator]


@given(st.floats(0.01, 1e9), st.lists(st.floats(0.1, 100), min_size=1, max_size=30))
def test_a_constant_speed_is_the_rate(speed: float, pauses: Sequence[float]) -> None:
    meter, now = Meter("", 0, 0, 0), 0.0
    for pause in pauses:
        now += pause
        meter = meter.measured(speed * now, now)  # type: ignore[arg-type]
    assert meter.rate == pytest.approx(speed, rel=1e-3)


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 10**9)), min_size=1, max_size=30))
def test_the_rate_lies_between_the_extreme_speeds(reports: Sequence[tuple[float, int]]) -> None:
    meter, speeds = Meter("", 0, 0, 0), []
    for pause, steps in reports:
        meter = meter.measured(meter.count + steps, meter.at + pause)
        speeds.append(steps / pause)
    assert (meter.rate is None) == (not any(speeds))  # nothing has moved
    assert min(speeds) * 0.999 <= (meter.rate or 0) <= max(speeds) * 1.001


def test_many_reports_at_once_cost_no_measurement(new: Job) -> None:
    begun = after(new, (0, counted(0, unit="B")), (1, counted(100)))
    assert begun.detail is not None
    again = after(begun, (1.01, counted(200)), (1.02, counted(300)))
    assert again.detail is not None
    assert (again.detail.meter, again.progress.rate) == (begun.detail.meter, 100)


def test_tasks_are_merged_by_id(new: Job) -> None:
    first = {"id": "a", "name": "Layer a", "current": 10, "total": 100, "unit": "B"}
    moved = after(new, (0, {"tasks": [first, {"id": "b"}]}), (1, {"tasks": [{"id": "a", "current": 60}]}))
    assert list(shown(moved)["tasks"]) == [
        {"id": "a", "name": "Layer a", "current": 60, "total": 100, "state": "processing", "unit": "B"},
        {"id": "b", "name": "b", "current": 0, "total": 0, "state": "processing"},
    ]
    assert moved.progress.percent == 30


def test_percentage_and_rate_come_from_one_unit(new: Job) -> None:
    def report(*current: int) -> dict[str, Any]:
        totals = (100, 300)
        each = zip("ab", current, totals, strict=True)
        return {"tasks": [{"id": id_, "current": now, "total": total, "unit": "B"} for id_, now, total in each]}

    moved = after(new, (0, report(0, 0)), (2, report(100, 100)))
    assert (moved.progress.percent, moved.progress.rate, moved.progress.unit) == (50, 100, "B")


@pytest.mark.parametrize("own", [counted(7, 10), counted(0, 0, percent=70), {"percent": 70}])
def test_the_percentage_of_the_producer_wins(own: dict[str, Any], new: Job) -> None:
    task = {"tasks": [{"id": "a", "current": 1, "total": 4}]}
    assert after(new, (0, {**own, **task})).progress.percent == 70
    assert after(new, (0, {**own, **task}), (1, {"tasks": [{"id": "a", "current": 4}]})).progress.percent == 70
    assert after(new, (0, task), (1, counted(0, 0))).progress.percent == 25


def test_a_new_task_replaces_the_oldest_finished_one() -> None:
    many = [ReportedTask(str(number), total=1) for number in range(MAX_TASKS)]
    full, _ = merged_tasks((), many, NOTHING_DROPPED)
    with pytest.raises(Conflict, match="at most 32 unfinished tasks"):
        merged_tasks(full, [ReportedTask("new")], NOTHING_DROPPED)
    ended, _ = merged_tasks(full, [ReportedTask("5", state=JobStatus.COMPLETED)], NOTHING_DROPPED)
    replaced, dropped = merged_tasks(ended, [ReportedTask("new", total=1)], NOTHING_DROPPED)
    assert [task.id for task in replaced] == [*(str(number) for number in range(32) if number != 5), "new"]
    assert tasks_percentage(replaced, dropped) == 100 * 1 // 33


@given(st.lists(tasks, max_size=120))
def test_merged_tasks_have_the_newest_value_of_each_field(reports: list[ReportedTask]) -> None:
    merged, dropped, finished = tuple[TaskData, ...](), NOTHING_DROPPED, 0
    newest = dict[tuple[str, str], Any]()
    for report in reports:
        known = {task.id: task for task in merged}
        try:
            merged, dropped = merged_tasks(merged, [report], dropped)
        except Conflict:
            assert report.id not in known
            assert len(known) == MAX_TASKS
            assert not any(task.state.finished for task in known.values())
            continue
        gone = known.keys() - {task.id for task in merged}
        finished += len(gone)
        newest = {key: value for key, value in newest.items() if key[0] not in gone}
        newest |= {
            (report.id, name): value
            for name in ("name", "current", "total", "unit", "state")
            if (value := getattr(report, name)) is not None
        }
    assert len(merged) <= MAX_TASKS
    assert dropped.tasks == finished
    assert all(
        getattr(task, name) == value for task in merged for (id_, name), value in newest.items() if id_ == task.id
    )
    if merged:
        assert 0 <= tasks_percentage(merged, dropped) <= 100


@given(st.lists(tasks, max_size=60), st.lists(st.integers(1, 60)))
def test_the_grouping_of_task_reports_does_not_matter(reports: list[ReportedTask], cuts: list[int]) -> None:
    one = [
        ReportedTask(f"{int(report.id[5:]) % MAX_TASKS}", *msgspec.structs.astuple(report)[1:]) for report in reports
    ]
    whole = merged_tasks((), one, NOTHING_DROPPED)
    merged = (), NOTHING_DROPPED
    edges = sorted({0, *(cut for cut in cuts if cut < len(one)), len(one)})
    for begin, end in pairwise(edges):
        merged = merged_tasks(merged[0], one[begin:end], merged[1])  # type: ignore[assignment]
    assert merged == whole


def names(begun: Job) -> list[tuple[str, float, float | None]]:
    return [
        (step.name, (step.began_at - NOW).total_seconds(), step.ended_at and (step.ended_at - NOW).total_seconds())
        for step in begun.steps
    ]


def test_the_timeline_has_each_step_with_its_rate(new: Job) -> None:
    begun = after(
        new,
        (1, counted(0, step_name="Read", unit="B")),
        (3, counted(200, step_name="Read")),
        (5, counted(400, step_name="Write")),
    )
    assert names(begun) == [("Read", 1, 5), ("Write", 5, None)]
    assert [step.rate for step in begun.steps] == [100, None]
    ended = apply(begun, CompletedEvent(ID), NOW + timedelta(seconds=9)).job
    assert names(ended) == [("Read", 1, 5), ("Write", 5, 9)]


def test_a_short_step_belongs_to_the_next(new: Job) -> None:
    begun = after(new, *[(1 + number / 100, counted(number, step_name=f"{number}")) for number in range(30)])
    assert names(begun) == [("9", 1, 1.1), ("19", 1.1, 1.2), ("20", 1.2, None)]
    ended = apply(begun, CompletedEvent(ID), NOW + timedelta(seconds=9)).job
    assert names(ended)[-1] == ("29", 1.2, 9)


def test_a_step_after_a_short_one_is_one_step(new: Job) -> None:
    reports = [(1, "Begin"), (1.05, "Upload"), (5, "Upload"), (9, "Upload"), (10, "Check")]
    begun = after(new, *[(second, counted(0, step_name=name)) for second, name in reports])
    assert names(begun) == [("Upload", 1, 10), ("Check", 10, None)]


def test_the_rate_of_a_phase_comes_from_its_tasks(new: Job) -> None:
    begun = after(
        new,
        (1, {"phase": "Pull"}),
        (2, {"tasks": [{"id": "a", "current": 100, "unit": "B"}]}),
        (5, {"tasks": [{"id": "b", "current": 300, "unit": "B"}]}),
    )
    ended = apply(begun, CompletedEvent(ID), NOW + timedelta(seconds=5)).job
    assert [step.rate for step in ended.steps] == [100]


def test_a_report_in_the_same_or_in_a_short_step_does_not_copy_the_timeline(new: Job) -> None:
    first = after(new, (0, {"current_step": 0, "total_steps": 100, "step_name": "Copy"}))
    same = after(first, (5, {"current_step": 50, "total_steps": 100, "step_name": "Copy"}))
    assert same.steps is first.steps
    short = after(first, (0.05, {"current_step": 1, "total_steps": 100, "step_name": "Sync"}))
    assert short.steps is first.steps


def test_a_phase_is_a_step(new: Job) -> None:
    begun = after(new, (1, {"phase": "Read"}), (2, {"phase": "Write"}), (3, {"phase": ""}))
    assert [(step.phase, step.name) for step in begun.steps] == [("Read", ""), ("Write", "")]
    assert begun.steps[-1].ended_at == NOW + timedelta(seconds=3)


def test_a_requeued_job_keeps_its_timeline() -> None:
    begun = apply(job(status=JobStatus.QUEUED, pipeline="pdf"), StartEvent(ID), NOW).job
    begun = after(begun, (1, counted(1, step_name="Read", unit="B")))
    again = apply(begun, RequeueEvent(ID), NOW + timedelta(seconds=4)).job
    assert shown(again) == {"current_step": 0, "total_steps": 1000, "step_name": "", "percent": 0}
    again = apply(again, StartEvent(ID), NOW + timedelta(seconds=5)).job
    assert names(after(again, (6, counted(1, step_name="Read")))) == [("Read", 1, 4), ("Read", 6, None)]


@settings(max_examples=12)
@given(st.lists(st.tuples(st.floats(0.2, 100), st.sampled_from(["", "a", "b"])), min_size=201, max_size=500))
def test_a_long_timeline_is_merged_without_gaps(given_steps: list[tuple[float, str]]) -> None:
    begun, second = apply(None, RegisterEvent(ID), NOW).job, 0.0
    for number, (pause, phase) in enumerate(given_steps):
        begun = after(begun, (second, counted(number, 10**6, step_name=f"Step {number}", phase=phase, unit="B")))
        second += pause
    steps = begun.steps
    assert len(steps) <= MAX_STEPS
    assert sum(step.merged for step in steps) == len(given_steps)
    assert all(one.ended_at == following.began_at for one, following in pairwise(steps))
    assert (steps[0].began_at, steps[-1].ended_at) == (NOW, None)


def test_short_neighbours_are_merged_first(new: Job) -> None:
    second, begun = 0.0, new
    for number in range(MAX_STEPS):
        begun = after(begun, (second, counted(number, step_name=f"Step {number}")))
        second += 100 if number % 10 == 0 else 1
    merged = merged_steps(begun.steps)
    assert len(merged) == 150
    assert all(step.merged == 1 for step in merged if step.name.endswith("0"))


def test_the_state_survives_its_encoding(new: Job) -> None:
    begun = after(
        new,
        (0, counted(0, unit="B", phase="Read", step_name="a", tasks=[{"id": "x", "total": 3}])),
        (1, counted(100, step_name="b")),
    )
    assert msgspec.json.decode(msgspec.json.encode(begun), type=Job) == begun
    assert msgspec.json.decode(msgspec.json.encode(begun.progress), type=ProgressData) == begun.progress
