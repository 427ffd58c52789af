"""`for item in track(items):` reports a loop as a job."""

import operator
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from progressd.client.job import Job

T = TypeVar("T")


def track(
    iterable: Iterable[T], total: int | None = None, name: str = "job", *, unit: str | None = None, **options: Any
) -> Iterator[T]:
    """Yield the items of an iterable, and report each as a step of a job.

    If the loop is left early, by `break` or by an exception, the job is cancelled. An exception of the iterable fails
    the job. Raises JobCancelled if the job is cancelled.

    Args:
        total: The number of items. By default, it is the length of the iterable, or unknown.
        unit: What the items are, such as "pages". With it, watchers see the rate.
        options: Further arguments of `Job`.
    """
    if total is None:
        total = operator.length_hint(iterable)
    return _steps(iter(iterable), Job(name, total, **options), unit)


def _steps(items: Iterator[T], job: Job, unit: str | None) -> Iterator[T]:
    with job:
        if unit is not None:
            job.progress(unit=unit)
        for number, item in enumerate(items, 1):
            yield item
            job.progress(number)
