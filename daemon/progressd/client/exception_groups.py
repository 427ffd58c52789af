"""Unwrap the errors of nurseries: remove the exception group around a single error."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from progressd.core.errors import leaves


@contextmanager
def unwrapped() -> Iterator[None]:
    """If the block raises an exception group with only one error, such as from a nursery, raise that error alone."""
    try:
        yield
    except BaseExceptionGroup as group:
        errors = [error for error in leaves(group) if not isinstance(error, trio.Cancelled)]
        if len(errors) > 1:
            raise
        raise next(iter(errors), next(leaves(group))) from None
