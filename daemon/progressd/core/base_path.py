"""The prefix below which a proxy shows the daemon, such as `/progress/`: in what comes in, and in what goes out."""


class BasePath:
    """`path` is the setting; the daemon answers below it, and at the root for proxies that take the prefix away."""

    def __init__(self, path: str = "/") -> None:
        self.text = path.rstrip("/")  # "" at the root
        self._target = f"{self.text}/".encode() if self.text else b""
        self._get = b"GET " + self._target

    def url(self, path: str) -> str:
        """The path of something of the daemon's, as clients see it."""
        return self.text + path

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
