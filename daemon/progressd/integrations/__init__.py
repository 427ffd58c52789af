"""Other libraries whose progress becomes jobs. Each module needs its library, and none of the daemon's packages."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def required(library: str, package: str) -> Iterator[None]:
    """Import a library in this block. Raises ModuleNotFoundError, with what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        text = f"progressd.integrations.{library} needs {package}: pip install {package}"
        raise ModuleNotFoundError(text, name=library) from None
