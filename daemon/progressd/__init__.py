"""Report the progress of long-running jobs to watchers, live."""

__version__ = "0.1.0"

TYPE_CHECKING = False  # `typing` takes as long to import as `progressd emit` runs
if TYPE_CHECKING:
    from progressd.client.track import track

__all__ = ["track"]


def __getattr__(name: str) -> object:
    if name != "track":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from progressd.client.track import track

    return track
