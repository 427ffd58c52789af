"""The upkeep of a state directory, from outside of the daemon and whether it runs or not: back up, check, export."""

import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from progressd.core.errors import InvalidInput, SettingsError
from progressd.core.events import checked_job_id
from progressd.core.job import Job
from progressd.core.status import JobStatus
from progressd.files import own_state_dir
from progressd.rest.views import JobView, job_view
from progressd.store import checking, copying
from progressd.store.reading import every_job, has_job, reading, store_id
from progressd.store.schema import MIGRATIONS, inspect

DATABASE: Final = "progressd.db"
LEFT_OVER: Final = 3600.0  # seconds after which files without a job are no upload that is still to become one


class Problem(NamedTuple):
    """A sentence, and what mends it, None where nothing does."""

    sentence: str
    repair: Callable[[], None] | None


def backup(state_dir: Path, target: Path) -> int:
    """Copy the database to a new file, and check the copy; its size in bytes. Raises Conflict, SettingsError."""
    return copying.backup(state_dir / DATABASE, target)


def export(state_dir: Path, statuses: Collection[JobStatus]) -> Iterator[JobView]:
    """All jobs with one of these statuses as REST shows them, oldest first. Raises SettingsError."""
    with reading(state_dir / DATABASE) as db:
        store = store_id(db)
        for job in every_job(db):
            if job.status in statuses:
                yield job_view(job, store)


def check(state_dir: Path) -> Iterator[Problem]:
    """What is wrong with database and files, as far as one can see without changing anything. Raises SettingsError."""
    path = state_dir / DATABASE
    with reading(path) as db:
        if inspect(path) < len(MIGRATIONS):
            raise SettingsError(f"the store {path} is of an older progressd: start this one once, and check it then")
        found = list(checking.problems(db))
        yield from (Problem(one.sentence, partial(checking.repair, path, one) if one.repair else None) for one in found)
        if all(one.repair for one in found):  # else it may not even be possible to read all jobs
            yield from _problems_of_files(state_dir / "jobs", every_job(db), partial(has_job, db))


def repair(state_dir: Path) -> Iterator[tuple[Problem, bool]]:
    """Mend what can be mended; each problem, and whether it has been. Raises SettingsError while a daemon runs.

    What is mended may have hidden something else, so it looks again until it finds nothing to mend. What is found again
    although it has been mended is left.
    """
    mended = set[str]()
    with own_state_dir(state_dir):
        while True:
            before, left = len(mended), list[Problem]()
            for found in check(state_dir):
                if found.repair is None or found.sentence in mended:
                    left.append(found)
                    continue
                found.repair()
                mended.add(found.sentence)
                yield found, True
            if len(mended) == before:
                break
        yield from ((found, False) for found in left)


def _problems_of_files(directory: Path, jobs: Iterable[Job], has_job: Callable[[str], bool]) -> Iterator[Problem]:
    for job in jobs:
        if missing := _missing(directory, job):
            yield Problem(f"job {job.id} is {job.status}, but there is no {directory / job.id / missing}", None)
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        with suppress(InvalidInput, FileNotFoundError):  # named as no job, or deleted just now
            known = has_job(checked_job_id(entry.name))
            if not known and entry.stat().st_mtime < time.time() - LEFT_OVER:
                yield Problem(f"{entry} belongs to no job", partial(shutil.rmtree, entry))


def _missing(directory: Path, job: Job) -> str | None:
    """Which file the daemon would look for in vain, of a job that it runs itself."""
    if job.pipeline is None:
        return None
    name = "output" if job.status is JobStatus.COMPLETED else None if job.status.finished else "input"
    return name if name and not (directory / job.id / name).exists() else None
