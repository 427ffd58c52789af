"""The path prefix under which a proxy serves the daemon, such as `/progress/`."""

from typing import Final, TypeVar

from msgspec.structs import replace

from progressd.core.messages import Completed, TopicMessage

M = TypeVar("M", bound=TopicMessage)


def download_path(job_id: str) -> str:
    """Return the path of a job's result as the store keeps it, without the prefix."""
    return f"/api/jobs/{job_id}/download"


class BasePath:
    """The setting `server.base_path`. The daemon also answers at the root, for proxies that strip the prefix."""

    def __init__(self, path: str = "/") -> None:
        self.text = path.rstrip("/")  # "" at the root
        self._target = f"{self.text}/".encode() if self.text else b""
        self._get = b"GET " + self._target

    def url(self, path: str) -> str:
        """Add the prefix to a path of the daemon."""
        return self.text + path

    def result(self, job_id: str, kept: str | None) -> str | None:
        """Return where clients download a job's result. `kept` may hold a prefix from before the setting changed."""
        own = download_path(job_id)
        return self.url(own) if kept is not None and kept.startswith("/") and kept.endswith(own) else kept

    def shown(self, message: M) -> M:
        """Return the message with URLs that clients can use."""
        if isinstance(message, Completed):
            url = self.result(message.job_id, message.data.output_path)
            return replace(message, data=replace(message.data, output_path=url, download_url=url))
        return message

    def strip(self, target: bytes) -> bytes:
        """Remove the prefix from a request target."""
        if self._target and target.startswith(self._target):
            return target[len(self._target) - 1 :]
        return target

    def strip_head(self, head: bytes) -> bytes:
        """Remove the prefix from the start of a request head if it is a GET."""
        if self._target and head.startswith(self._get):
            return b"GET " + head[len(self._get) - 1 :]
        return head


AT_ROOT: Final = BasePath()
