"""Back up, check, repair and export a state directory, whether or not the daemon runs."""

import shutil
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from progressd.core.errors import InvalidInput, SettingsError, StoreDamaged
from progressd.core.events import checked_job_id
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.files.job_files import ORPHAN_MIN_AGE
from progressd.files.state_dir import own_state_dir
from progressd.http.schemas import JobView, job_view
from progressd.net.request import AT_ROOT
from progressd.store import offline
from progressd.store.offline import every_job, has_job, ids_from, reading, store_id
from progressd.store.recovery import SHELL, recover
from progressd.store.schema import MIGRATIONS, inspect

DATABASE: Final = "progressd.db"
REPAIR_PROGRAM: Final = SHELL  # also the name of its Debian package


class RepairAction(StrEnum):
    """The action of `repair` for a problem."""

    NONE = "cannot be repaired"
    REPAIR = "--repair repairs this"
    DELETE = "--repair deletes it"
    RECOVER = "--repair recovers what can be read"


class Finding(NamedTuple):
    """A problem and its remedy: call `repair`, or recover the database if `remedy` is RECOVER."""

    sentence: str
    remedy: RepairAction
    repair: Callable[[], object] | None = None


def require_readable(state_dir: Path) -> None:
    """Raise SettingsError if a quick check finds that a daemon could not open the database."""
    with reading(state_dir / DATABASE) as db:
        store_id(db)


def backup(state_dir: Path, target: Path) -> int:
    """Copy the database to a new file, check the copy, and return its size. Raises Conflict, SettingsError."""
    return offline.backup(state_dir / DATABASE, target)


def export(state_dir: Path, statuses: Collection[JobStatus]) -> Iterator[JobView]:
    """Yield the jobs with one of these statuses in the format of the REST API, oldest first. Raises SettingsError."""
    with reading(state_dir / DATABASE) as db:
        store = store_id(db)
        for job in every_job(db):
            if job.status in statuses:
                yield job_view(job, store, AT_ROOT)


def ids_beginning(state_dir: Path, beginning: str) -> list[str] | None:
    """Return the job ids that start with `beginning`, which is in lower case; None if the database cannot be read."""
    try:
        with reading(state_dir / DATABASE) as db:
            return ids_from(db, beginning)
    except SettingsError:
        return None


def check(state_dir: Path) -> Generator[Finding]:
    """Yield the problems of the database and the files, and change nothing. Raises SettingsError."""
    path = state_dir / DATABASE
    try:
        with reading(path) as db:
            found = list(offline.problems(db))
            if inspect(path) < len(MIGRATIONS):
                raise SettingsError(f"{path} is from an older progressd: start the daemon once before the check")
            for one in found:
                if one.repair is None:
                    yield Finding(one.sentence, RepairAction.RECOVER)
                else:
                    yield Finding(one.sentence, RepairAction.REPAIR, partial(offline.repair, path, one))
            if all(one.repair for one in found):  # otherwise some jobs may be unreadable
                yield from _problems_of_files(state_dir / "jobs", every_job(db), partial(has_job, db))
    except StoreDamaged as error:
        yield Finding(str(error), RepairAction.RECOVER)


def repair(state_dir: Path) -> Iterator[tuple[str, bool]]:
    """Repair the problems. Yield a sentence for each problem and lost record, and whether it is repaired.

    A problem may hide another one, so the check repeats until it finds nothing new. If jobs may have been lost in
    this run, files without a job are kept. Raises SettingsError while a daemon runs.
    """
    repaired, recovered = set[str](), False
    with own_state_dir(state_dir):
        while True:
            before, left, damage = len(repaired), dict[str, str](), list[str]()
            for found in check(state_dir):
                if found.sentence in repaired or found.remedy is RepairAction.NONE:
                    left[found.sentence] = RepairAction.NONE
                elif found.remedy is RepairAction.RECOVER:
                    damage.append(found.sentence)
                elif found.remedy is RepairAction.DELETE and recovered:
                    left[found.sentence] = "kept, since its job may be lost; another --repair deletes it"
                elif found.repair is not None:
                    found.repair()
                    repaired.add(found.sentence)
                    yield f"{found.sentence}: repaired", True
            if damage:
                recovered = True
                repaired.update(damage)
                yield from _recover(state_dir / DATABASE, damage)
            if len(repaired) == before:
                break
        yield from ((f"{sentence}: {why}", False) for sentence, why in left.items())


def _recover(path: Path, damage: list[str]) -> Iterator[tuple[str, bool]]:
    """Replace a damaged database with a new one that contains all readable data. Raises SettingsError."""
    recovered = recover(path)
    yield from ((f"{sentence}: repaired", True) for sentence in damage)
    yield f"everything readable is in a new database; the damaged one is {recovered.kept}", True
    yield from ((sentence, False) for sentence in recovered.lost)


def _problems_of_files(directory: Path, jobs: Iterable[Job], has_job: Callable[[str], bool]) -> Iterator[Finding]:
    for job in jobs:
        if (missing := _missing(directory, job)) and has_job(job.id):  # not deleted during the check
            yield Finding(
                f"job {job.id} is {job.status}, but there is no {directory / job.id / missing}", RepairAction.NONE
            )
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        with suppress(InvalidInput, FileNotFoundError):  # not named by a job id, or deleted during the check
            known = has_job(checked_job_id(entry.name))
            if not known and entry.stat().st_mtime < time.time() - ORPHAN_MIN_AGE:
                yield Finding(f"{entry} belongs to no job", RepairAction.DELETE, partial(shutil.rmtree, entry))


def _missing(directory: Path, job: Job) -> str | None:
    """Return the missing file of a job that the daemon runs, if any."""
    if job.pipeline is None:
        return None
    name = "output" if job.status is JobStatus.COMPLETED else None if job.status.finished else "input"
    return name if name and not (directory / job.id / name).exists() else None
