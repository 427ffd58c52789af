"""`progressd show`: everything about one job."""

import sys
from collections.abc import Iterator
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from msgspec import UNSET

from progressd.cli import text
from progressd.cli.language import for_reader, later, t
from progressd.cli.options import complete_job
from progressd.cli.remote import Remote, remote_options, whole_id
from progressd.client.errors import APIError
from progressd.core.messages import JobStatus, ProgressData

if TYPE_CHECKING:
    from progressd.client.rest import RestClient

LOG_LINES: Final = 10
TIMES: Final = {"created": later("Created"), "started": later("Started"), "completed": later("Completed")}
LISTS: Final = {"labels": later("Labels"), "options": later("Options")}


@click.command()
@click.argument("job_id", metavar="JOB", shell_complete=complete_job)
@click.option("--json", "as_json", is_flag=True, help="Print the job as one line of JSON.")
@remote_options
def show(job_id: str, as_json: bool, remote: Remote) -> None:
    """Show everything about a job: its times, progress, tasks, steps, labels, result, error and the end of its log.

    \b
    Examples:
      progressd show 6e4d1c9e
      progressd show 6e4d1c9e --json | jq '.steps[] | {step_name, rate}'
    """
    with remote.client() as client:
        job = client.job(whole_id(client, job_id))
        lines = [] if as_json else _log(client, job["id"])
    if as_json:
        click.echo(msgspec.json.encode(job))
        return
    with for_reader(sys.stdout):
        click.echo(text.name(job))
        click.echo("\n".join(text.columns([(f"{name}:", value) for name, value in _facts(job, remote.url)])))
        for title, rows in ((t("Tasks"), _tasks(job)), (t("Steps"), _steps(job)), (t("Log"), lines)):
            if rows:
                click.echo("\n".join([f"\n{title}", *(f"{text.GAP}{line}".rstrip() for line in text.columns(rows))]))


def _facts(job: dict[str, Any], url: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values to print, as far as they are known."""
    progress = _progress(job)
    yield t("Job"), job["id"]
    yield t("Kind"), text.printable(job["kind"])
    if "pipeline" in job:
        yield t("Pipeline"), text.printable(job["pipeline"])
    if job.get("name") and job.get("input_filename"):
        yield t("File"), text.printable(job["input_filename"])
    state = [text.status(job["status"])]
    state += [text.outcome(job)] if "queue_position" in job else []
    state += [t("attempt {n}", n=job["attempt"])] if job["attempt"] > 1 else []
    yield t("Status"), t(", ").join(state)
    moved = [
        text.percent(progress.percent, progress.total_steps),
        text.steps(progress),
        text.rate(progress.rate, progress.unit),
        text.time_left(progress),
    ]
    if any(moved):
        yield t("Progress"), t(", ").join(filter(None, moved))
    if step := text.where(progress):
        yield t("Step"), step
    for name, title in TIMES.items():
        if f"{name}_at" in job:
            ended = name == "completed" and job["status"] != JobStatus.COMPLETED
            yield t("Ended") if ended else t(title), text.local_time(job[f"{name}_at"]) + _after(job, name)
    if "lease_seconds" in job:
        yield t("Lease"), text.seconds(job["lease_seconds"])
    if "batch_id" in job:
        yield t("Batch"), t("{id}, priority {priority}", id=job["batch_id"], priority=job["priority"])
    for name, title in LISTS.items():
        if job[name]:
            values = (f"{key}={_typed(value)}" for key, value in job[name].items())
            yield t(title), text.printable(", ".join(values))
    if "output_path" in job:
        yield t("Result"), text.result_url(job["output_path"], url)
    if "page_count" in job:
        yield t("Pages"), str(job["page_count"])
    if "error" in job:
        yield t("Error"), text.said(job["error"])


def _typed(value: object) -> str:
    """Return the value of an option or label as a user types it."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _after(job: dict[str, Any], name: str) -> str:
    """Return how long a job waited before its start, or how long it ran."""
    if name == "started":
        waited = text.seconds(_seconds(job["created_at"], job["started_at"]))
        if job["attempt"] > 1:  # the time includes the earlier attempts
            return t(", attempt {n}, {time} after the job was created", n=job["attempt"], time=waited)
        return t(", after {time}", time=waited)
    if name == "completed" and "started_at" in job:
        ran = job.get("elapsed_seconds", _seconds(job["started_at"], job["completed_at"]))
        return t(", after {time}", time=text.seconds(ran))
    return ""


def _tasks(job: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = list[tuple[str, ...]]()
    for task in _progress(job).tasks:
        percent = text.task_percent(task)
        counted = text.counts(task.current, task.total, task.unit)
        rows.append(
            (text.printable(task.name), text.status(task.state), "" if percent is None else f"{percent}%", counted)
        )
    return rows


def _steps(job: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = list[tuple[str, ...]]()
    for step in job.get("steps", ()):
        name = text.phase_and_step(step.get("phase", ""), step["step_name"])
        merged = t(" ({n} steps)", n=step["merged"]) if "merged" in step else ""
        earlier = t(" (earlier attempt)") if _is_earlier(step, job) else ""
        lasted = text.seconds(_seconds(step["started_at"], step["ended_at"])) if "ended_at" in step else ""
        rate = text.rate(step.get("rate", UNSET), step.get("unit", UNSET))
        rows.append((text.local_time(step["started_at"]), lasted, rate, name + merged + earlier))
    return rows


def _is_earlier(step: dict[str, Any], job: dict[str, Any]) -> bool:
    """Return whether a step belongs to an earlier attempt."""
    began = datetime.fromisoformat(step["started_at"])
    return "started_at" not in job or began < datetime.fromisoformat(job["started_at"])


def _log(client: "RestClient", job_id: str) -> list[tuple[str, ...]]:
    """Return the last lines of the log; none for a watch token, which may not read logs."""
    try:
        lines = client.log(job_id, f"?tail={LOG_LINES}").decode().splitlines()
    except APIError as error:
        if error.status not in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):  # an older daemon has no logs
            raise
        return []
    return [(text.printable(line),) for line in lines]


def _progress(job: dict[str, Any]) -> Any:
    return msgspec.convert(job["progress"], ProgressData)


def _seconds(begin: str, end: str) -> float:
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds())
