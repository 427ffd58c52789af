"""The prefix below which a proxy shows the daemon, such as `/progress/`: in what comes in, and in what goes out."""

from typing import Final, TypeVar

from msgspec.structs import replace

from progressd.core.messages import Completed, TopicMessage

M = TypeVar("M", bound=TopicMessage)


def download_path(job_id: str) -> str:
    """Where the daemon itself has the result of a job, as which it is kept."""
    return f"/api/jobs/{job_id}/download"


class BasePath:
    """`path` is the setting; the daemon answers below it, and at the root for proxies that take the prefix away."""

    def __init__(self, path: str = "/") -> None:
        self.text = path.rstrip("/")  # "" at the root
        self._target = f"{self.text}/".encode() if self.text else b""
        self._get = b"GET " + self._target

    def url(self, path: str) -> str:
        """The path of something of the daemon's, as clients see it."""
        return self.text + path

    def result(self, job_id: str, kept: str | None) -> str | None:
        """Where clients find the result of a job; `kept` may have a prefix that was in force when the job ended."""
        own = download_path(job_id)
        return self.url(own) if kept is not None and kept.startswith("/") and kept.endswith(own) else kept

    def shown(self, message: M) -> M:
        """A message as clients see it."""
        if isinstance(message, Completed):
            url = self.result(message.job_id, message.data.output_path)
            return replace(message, data=replace(message.data, output_path=url, download_url=url))
        return message

    def inside(self, target: bytes) -> bytes:
        """A request target without the prefix."""
        if self._target and target.startswith(self._target):
            return target[len(self._target) - 1 :]
        return target

    def inside_head(self, head: bytes) -> bytes:
        """The head of a request, as much as there is of it, without the prefix if it is a GET."""
        if self._target and head.startswith(self._get):
            return b"GET " + head[len(self._get) - 1 :]
        return head


AT_ROOT: Final = BasePath()
