"""The upkeep of a state directory, from outside of the daemon and whether it runs or not: back up, check, export."""

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
from progressd.core.status import JobStatus
from progressd.files.job_files import ORPHAN_MIN_AGE
from progressd.files.state_dir import own_state_dir
from progressd.http.schemas.views import JobView, job_view
from progressd.net.base_path import AT_ROOT
from progressd.store import backup as store_backup
from progressd.store import check as store_check
from progressd.store.offline import every_job, has_job, ids_from, reading, store_id
from progressd.store.recovery import SHELL, recover
from progressd.store.schema import MIGRATIONS, inspect

DATABASE: Final = "progressd.db"
REPAIR_PROGRAM: Final = SHELL  # and the Debian package that has it


class RepairAction(StrEnum):
    """What `repair` does about a problem."""

    NONE = "nothing mends this"
    MEND = "--repair mends this"
    DELETE = "--repair deletes it"
    SAVE = "--repair saves what can be read"


class Finding(NamedTuple):
    """A sentence, and what to do about it, by calling `repair` unless a whole new database is to be made."""

    sentence: str
    remedy: RepairAction
    repair: Callable[[], object] | None = None


def require_readable(state_dir: Path) -> None:
    """Raises SettingsError where a daemon would not begin with the database that is there, as far as a glance tells."""
    with reading(state_dir / DATABASE) as db:
        store_id(db)


def backup(state_dir: Path, target: Path) -> int:
    """Copy the database to a new file, and check the copy; its size in bytes. Raises Conflict, SettingsError."""
    return store_backup.backup(state_dir / DATABASE, target)


def export(state_dir: Path, statuses: Collection[JobStatus]) -> Iterator[JobView]:
    """All jobs with one of these statuses as REST shows them, oldest first. Raises SettingsError."""
    with reading(state_dir / DATABASE) as db:
        store = store_id(db)
        for job in every_job(db):
            if job.status in statuses:
                yield job_view(job, store, AT_ROOT)


def may_have(state_dir: Path, job_id: str) -> bool:
    """Whether there is such a job; True as well where no store can be read yet."""
    try:
        with reading(state_dir / DATABASE) as db:
            return has_job(db, job_id)
    except SettingsError:
        return True


def ids_beginning(state_dir: Path, beginning: str) -> list[str]:
    """The ids of jobs that begin like this; none where no store can be read yet."""
    try:
        with reading(state_dir / DATABASE) as db:
            return ids_from(db, beginning)
    except SettingsError:
        return []


def check(state_dir: Path) -> Generator[Finding]:
    """What is wrong with database and files, as far as one can see without changing anything. Raises SettingsError."""
    path = state_dir / DATABASE
    try:
        with reading(path) as db:
            found = list(store_check.problems(db))
            if inspect(path) < len(MIGRATIONS):
                raise SettingsError(
                    f"the store {path} is of an older progressd: start this one once, and check it then"
                )
            for one in found:
                if one.repair is None:
                    yield Finding(one.sentence, RepairAction.SAVE)
                else:
                    yield Finding(one.sentence, RepairAction.MEND, partial(store_check.repair, path, one))
            if all(one.repair for one in found):  # else it may not even be possible to read all jobs
                yield from _problems_of_files(state_dir / "jobs", every_job(db), partial(has_job, db))
    except StoreDamaged as error:
        yield Finding(str(error), RepairAction.SAVE)


def repair(state_dir: Path) -> Iterator[tuple[str, bool]]:
    """Mend what can be mended; a sentence for each problem, and whether that has been. What is lost is said.

    What is mended may have hidden something else, so it looks again until it finds nothing to mend. What is found again
    although it has been mended is left, and so are files without a job in a run in which jobs may have been lost.
    Raises SettingsError while a daemon runs.
    """
    mended, saved = set[str](), False
    with own_state_dir(state_dir):
        while True:
            before, left, damage = len(mended), dict[str, str](), list[str]()
            for found in check(state_dir):
                if found.sentence in mended or found.remedy is RepairAction.NONE:
                    left[found.sentence] = RepairAction.NONE
                elif found.remedy is RepairAction.SAVE:
                    damage.append(found.sentence)
                elif found.remedy is RepairAction.DELETE and saved:
                    left[found.sentence] = "left, since its job may be lost; another --repair deletes it"
                elif found.repair is not None:
                    found.repair()
                    mended.add(found.sentence)
                    yield f"{found.sentence}: mended", True
            if damage:
                saved = True
                mended.update(damage)
                yield from _save(state_dir / DATABASE, damage)
            if len(mended) == before:
                break
        yield from ((f"{sentence}: {why}", False) for sentence, why in left.items())


def _save(path: Path, damage: list[str]) -> Iterator[tuple[str, bool]]:
    """Put a new database, with all that can be read, in the place of a damaged one. Raises SettingsError."""
    recovered = recover(path)
    yield from ((f"{sentence}: mended", True) for sentence in damage)
    yield f"all that can be read is in a new database; {recovered.kept} is the damaged one", True
    yield from ((sentence, False) for sentence in recovered.lost)


def _problems_of_files(directory: Path, jobs: Iterable[Job], has_job: Callable[[str], bool]) -> Iterator[Finding]:
    for job in jobs:
        if (missing := _missing(directory, job)) and has_job(job.id):  # not deleted since it was read
            yield Finding(
                f"job {job.id} is {job.status}, but there is no {directory / job.id / missing}", RepairAction.NONE
            )
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        with suppress(InvalidInput, FileNotFoundError):  # named as no job, or deleted just now
            known = has_job(checked_job_id(entry.name))
            if not known and entry.stat().st_mtime < time.time() - ORPHAN_MIN_AGE:
                yield Finding(f"{entry} belongs to no job", RepairAction.DELETE, partial(shutil.rmtree, entry))


def _missing(directory: Path, job: Job) -> str | None:
    """Which file the daemon would look for in vain, of a job that it runs itself."""
    if job.pipeline is None:
        return None
    name = "output" if job.status is JobStatus.COMPLETED else None if job.status.finished else "input"
    return name if name and not (directory / job.id / name).exists() else None
