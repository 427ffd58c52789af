"""progressd.js in Node, against a real daemon: nothing is missing and nothing comes twice."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import pytest
from progressd.http.static_files import WEBUI
from support import keys
from support.samples import job_id
from support.serving import ServedDaemon, served_daemon
from support.waiting import PATIENCE, until

SCRIPT = Path(__file__).parent / "watch.mjs"
MODULE = (WEBUI / "progressd.js").as_uri()
END = job_id(999)
WEBSOCKET = "--experimental-websocket"  # for Node 20; later ones have it anyway
TRANSPORTS: Mapping[str, Any] = {
    "websocket": {},
    "sse": {"blocked": ["token"]},
    "polling": {"blocked": ["/events"]},
}


class Node:
    """A watcher in its own process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: Queue[str] = Queue()
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def next(self) -> Any:
        """Return the next message."""
        try:
            return json.loads(self._lines.get(timeout=PATIENCE))
        except Empty:
            raise AssertionError("no message arrived") from None

    def until(self, type_: str, id_: str | None = None) -> list[Any]:
        """Return the messages up to the first of this type, and of this job."""
        messages = [self.next()]
        while messages[-1]["type"] != type_ or (id_ is not None and messages[-1].get("job_id") != id_):
            messages.append(self.next())
        return messages

    def go(self) -> None:
        """Let a held watcher continue."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join()


@contextmanager
def watching(url: str, transport: str = "sse", **options: Any) -> Iterator[Node]:
    """Watch in Node."""
    flags = [WEBSOCKET] if transport == "websocket" else ["--no-experimental-websocket"]
    command = ["node", "--no-warnings", *flags, str(SCRIPT), MODULE, url, json.dumps(options | TRANSPORTS[transport])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        node = Node(process)
        try:
            yield node
        finally:
            node.close()


def report(daemon: ServedDaemon, *events: Mapping[str, Any], key: str = "") -> None:
    """Report events. Each must be accepted."""
    body = "".join(json.dumps(event) + "\n" for event in events)
    headers = {"Content-Type": "application/x-ndjson", **(keys.bearer(key) if key else {})}
    answers = daemon.request("POST", "/api/events", content=body, headers=headers).text.splitlines()
    assert [json.loads(answer)["ok"] for answer in answers] == [True] * len(events)


def whole_job(id_: str) -> Iterator[dict[str, Any]]:
    yield {"type": "job_created", "job_id": id_, "data": {"kind": "test"}}
    yield {"type": "progress", "job_id": id_, "data": {"current_step": 1, "total_steps": 2}}
    yield {"type": "completed", "job_id": id_}


WHOLE = ["processing", "completed", "end"]


def changes(messages: list[Any]) -> dict[str, list[str]]:
    """Return the changes of status of each job, in order."""
    found = dict[str, list[str]]()
    for message in messages:
        id_ = message.get("job_id")
        if message["type"] == "status_change":
            found.setdefault(id_, []).append(message["data"]["new_status"])
        elif message["type"] in ("completed", "error"):
            found.setdefault(id_, []).append("end")
    return found


def test_kills_of_the_daemon_lose_nothing(tmp_path: Path, free_port: int) -> None:
    state_dir = tmp_path / "state"
    with ExitStack() as stack:
        watchers = dict[str, Node]()
        received = dict[str, list[Any]]()
        for round_ in range(2):
            with served_daemon(state_dir, port=free_port) as daemon:
                if not round_:
                    for transport in TRANSPORTS:
                        watchers[transport] = stack.enter_context(watching(daemon.url, transport, jobs=True))
                        received[transport] = watchers[transport].until("connection")
                        expected = {"live"} if transport != "polling" else {"polling"}
                        assert {message["data"]["state"] for message in received[transport]} == expected
                for number in range(20):
                    id_ = job_id(100 * round_ + number)
                    report(daemon, *whole_job(id_))
                    if number % 2 == 0:
                        report(daemon, {"type": "job_created", "job_id": job_id(500 + 100 * round_ + number)})
                daemon.kill()
        with served_daemon(state_dir, port=free_port) as daemon:
            report(daemon, *whole_job(END))
            for transport, node in watchers.items():
                received[transport] += node.until("completed", END)
        for transport in ("websocket", "sse"):
            watchers[transport].until("server_shutdown")
    for transport, messages in received.items():
        for id_, seen in changes(messages).items():
            assert seen == (["completed", "end"] if transport == "polling" and seen[0] == "completed" else WHOLE), id_
        assert len(changes(messages)) == 41, transport


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServedDaemon, str]]:
    """A daemon that requires a key, and a key."""
    state_dir = tmp_path_factory.mktemp("locked") / "state"
    key = keys.add(state_dir / "keys.json", "node", "read", "write")
    with served_daemon(state_dir, config="[auth]\nrequired = true\n[log]\nmax_bytes_per_job = 1048576\n") as daemon:
        yield daemon, key


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_watch_ends_with_its_job(transport: str, locked: tuple[ServedDaemon, str]) -> None:
    daemon, key = locked
    id_ = job_id(10 + list(TRANSPORTS).index(transport))
    created, moved, completed = whole_job(id_)
    log = {"type": "log", "job_id": id_, "data": {"text": "first\nsecond"}}
    report(daemon, created, key=key)
    with (
        watching(daemon.url, transport, key=key, job=id_) as job,
        watching(daemon.url, "sse", key=key, log=id_) as text,
    ):
        seen = job.until("connection") + text.until("connection")
        report(daemon, moved, log, key=key)
        seen += job.until("progress")
        assert [line["text"] for line in text.until("log")[-1]["data"]["lines"]] == ["first", "second"]
        report(daemon, completed, key=key)
        seen += job.until("over")
        assert changes(seen) == {id_: WHOLE}
        text.until("over")


def test_a_refused_watch_says_why(locked: tuple[ServedDaemon, str]) -> None:
    daemon, key = locked
    refusals = {
        ("unauthorized", 401): {"key": "pgd_wrong", "jobs": True},
        ("not_found", 404): {"key": key, "job": job_id(404)},
        ("bad_request", 400): {"key": key, "jobs": True, "types": ["nonsense"]},
    }
    with ExitStack() as stack:
        for expected, options in refusals.items():
            stack.callback(check_refusal, stack.enter_context(watching(daemon.url, "websocket", **options)), expected)


def check_refusal(node: Node, expected: tuple[str, int]) -> None:
    refused = node.until("refused")[-1]
    assert (refused["code"], refused["status"]) == expected
    assert len(refused["message"]) > 20


def test_a_slow_reader_gets_all_changes_and_the_newest_progress(locked: tuple[ServedDaemon, str]) -> None:
    daemon, key = locked
    count = 2000  # with three messages that must not be dropped for each, more than the queue holds
    last = job_id(5000)
    with watching(daemon.url, "websocket", key=key, jobs=True, hold=True) as node:
        seen = node.until("hello")
        report(daemon, {"type": "job_created", "job_id": last}, key=key)
        moves_of = ({"type": "progress", "job_id": last, "data": {"percent": step // 3}} for step in range(1, 301))
        report(daemon, *moves_of, key=key)
        for first in range(0, count, 500):
            report(daemon, *(event for n in range(500) for event in whole_job(job_id(6000 + first + n))), key=key)
        report(daemon, {"type": "completed", "job_id": last}, key=key)
        until(lambda: watchers_of(daemon, key) == 0)  # it has disconnected, instead of keeping all messages
        node.go()
        seen += node.until("completed", last)
    found = changes(seen)
    assert len(found) == count + 1
    assert set(map(tuple, found.values())) == {tuple(WHOLE)}
    moves = [message for message in seen if message["type"] == "progress" and message["job_id"] == last]
    assert moves[-1]["data"]["percent"] == 100
    assert len(moves) < 100


def watchers_of(daemon: ServedDaemon, key: str) -> int:
    """Return the number of open WebSockets."""
    stats = daemon.request("GET", "/api/stats", headers=keys.bearer(key)).json()
    return int(stats["system"]["websocket_connections"])
