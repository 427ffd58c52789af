"""A plain `progressd emit`, without click, so that a script spends little time on reports.

This module imports only C modules, because importing `socket`, `json` or `typing` takes as long as starting Python. It
handles only the common options. For other options, or after an error, the full command line runs. It may send the same
report again, which does no harm, and prints the error.
"""

import _socket  # `socket` imports enum and selectors
import sys

from progressd import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    _Address = tuple[int, str | tuple[object, ...]]

CONNECT_TIMEOUT = 3.0  # seconds; a script waits for each report
ANSWER_TIMEOUT = 10.0  # seconds
MAX_COUNT = 2**53  # this and the next limits are those of `core/event_limits.py`, whose import would take 0.3 ms
MAX_STEP_NAME = 1000
MAX_UNIT = 20
MAX_PHASE = 200
MAX_TASK_ID = 100
MAX_ETA = 36500 * 86400  # seconds
MAX_ERROR = 10_000
MAX_ANSWER = 65536  # bytes
END_OF_ANSWER = (b"}", b"}\n")  # the daemon also closes the connection of an HTTP request
ID_LENGTH = 36  # characters
FLAGS = ("--completed",)
PROGRESS = ("--step", "--total", "--percent", "--unit", "--phase", "--eta", "--task")
OPTIONS = (*PROGRESS, "--job", "--failed", "--url", "--key", "--key-file", "--socket")
SHORT = {"-n": "--step", "-t": "--total", "--current": "--step"}
_ESCAPED = {**{code: f"\\u{code:04x}" for code in range(32)}, ord('"'): '\\"', ord("\\"): "\\\\"}


class _Unclear(Exception):
    """The command line must handle this."""


class _TimedOut(Exception):
    """The daemon did not answer in time. `str(error)` is a sentence for the user."""


def emit(arguments: "Sequence[str]", environ: "Mapping[str, str]") -> None:
    """Report and exit. Return if the command line has to handle this."""
    try:
        if report(arguments, environ):
            sys.exit()
    except _TimedOut as error:
        from progressd.cli.language import sentence, t
        from progressd.system.log_sinks import stderr_is_journal

        line = t("Error: {message}", message=sentence(str(error)))
        sys.exit(f"{'<3>' if stderr_is_journal() else ''}{line}")


def report(arguments: "Sequence[str]", environ: "Mapping[str, str]") -> bool:
    """Send the report of these arguments. Return False if the command line must handle them. Raises _TimedOut."""
    try:
        _report(_parsed(arguments), environ)
    except (_Unclear, OSError):
        return False
    return True


def _parsed(arguments: "Sequence[str]") -> "dict[str, str]":
    """Return the options by name, and the step's name as "STEP". Raises _Unclear."""
    given: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        name = SHORT.get(name, name)
        if name in FLAGS and not equals:
            given[name] = ""
        elif name in OPTIONS:
            following = value if equals else next(rest, None)
            if not following:
                raise _Unclear
            given[name] = following
        elif argument.startswith("-") or "STEP" in given:
            raise _Unclear
        else:
            given["STEP"] = argument
    return given


def _report(given: "Mapping[str, str]", environ: "Mapping[str, str]") -> None:
    """Send the report. Raises _Unclear and OSError."""
    job_id = given.get("--job") or environ.get("PROGRESSD_JOB_ID")
    url = given.get("--url") or (None if "--socket" in given else environ.get("PROGRESSD_URL"))
    path = given.get("--socket") or environ.get("PROGRESSD_SOCKET")
    if not job_id:
        raise _Unclear
    type_, data = _event(given)
    if path and not url:
        line = f'{{"ref":0,"job_id":{_quoted(job_id)},"type":"{type_}","data":{data}}}\n'
        _report_over_socket(path, _encoded(line))
    else:
        url = (url or "http://127.0.0.1:8080").rstrip("/")
        host, port, prefix = _address(url)
        body = _encoded(f'{{"type":"{type_}","data":{data}}}')
        head = _head(f"{prefix}/api/jobs/{_plain_id(job_id)}/events", f"{host}:{port}", _key(given, environ), len(body))
        _report_over_http(url, host, port, head.encode() + body)


def _event(given: "Mapping[str, str]") -> tuple[str, str]:
    """Return the type and the JSON of an event. Raises _Unclear."""
    if "--task" in given:
        return "progress", f'{{"tasks":[{{{_task(given)}}}]{_phase(given)}{_eta(given)}}}'
    moved = [name for name in ("STEP", "--step", "--total", "--percent") if given.get(name)]
    details = _phase(given) + _unit(given) + _eta(given)
    if details and ("--completed" in given or "--failed" in given):
        raise _Unclear
    if details and not moved:
        return "progress", f"{{{details[1:]}}}"
    if bool(moved) + ("--completed" in given) + ("--failed" in given) != 1:
        raise _Unclear
    if "--completed" in given:
        return "completed", "{}"
    if "--failed" in given:
        return "error", f'{{"message":{_quoted(given["--failed"], MAX_ERROR)}}}'
    percent = f',"percent":{_number(given["--percent"], 100)}' if "--percent" in given else ""
    steps = f'"current_step":{_count(given.get("--step"))},"total_steps":{_count(given.get("--total"))}'
    return "progress", f'{{{steps},"step_name":{_quoted(given.get("STEP", ""), MAX_STEP_NAME)}{percent}{details}}}'


def _task(given: "Mapping[str, str]") -> str:
    """Return the JSON of a task, without braces."""
    if "--percent" in given or "--failed" in given:
        raise _Unclear
    name = f',"name":{_quoted(given["STEP"], MAX_PHASE)}' if given.get("STEP") else ""
    current = f',"current":{_count(given["--step"])}' if "--step" in given else ""
    total = f',"total":{_count(given["--total"])}' if "--total" in given else ""
    state = ',"state":"completed"' if "--completed" in given else ""
    return f'"id":{_quoted(given["--task"], MAX_TASK_ID)}{name}{current}{total}{_unit(given)}{state}'


def _unit(given: "Mapping[str, str]") -> str:
    return f',"unit":{_quoted(given["--unit"], MAX_UNIT)}' if "--unit" in given else ""


def _phase(given: "Mapping[str, str]") -> str:
    return f',"phase":{_quoted(given["--phase"], MAX_PHASE)}' if "--phase" in given else ""


def _eta(given: "Mapping[str, str]") -> str:
    return f',"eta_seconds":{_number(given["--eta"], MAX_ETA)}' if "--eta" in given else ""


def _count(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdecimal() and int(text[:17]) <= MAX_COUNT and len(text) <= 16):
        raise _Unclear
    return int(text)


def _number(text: str, maximum: float) -> float:
    try:
        number = float(text)
    except ValueError:
        raise _Unclear from None
    if not 0 <= number <= maximum:
        raise _Unclear
    return number


def _quoted(text: str, max_length: int = MAX_STEP_NAME) -> str:
    """Return the text as JSON. Raises _Unclear if it is too long."""
    if len(text) > max_length:
        raise _Unclear
    return f'"{text.translate(_ESCAPED)}"'


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # arguments may contain bytes that are not UTF-8


def _plain_id(job_id: str) -> str:
    if len(job_id) != ID_LENGTH or not (job_id.isascii() and job_id.replace("-", "").isalnum()):
        raise _Unclear  # such as an abbreviated id
    return job_id


def _address(url: str) -> tuple[str, int, str]:
    """Return the host, port and path of a plain HTTP URL. Raises _Unclear for all other URLs."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    host, _, port = authority.partition(":")
    plain = url.isascii() and url.isprintable() and not any(character in url for character in " @?#[]\\")
    if scheme != "http" or not plain or not host or not ((port or "80").isdecimal() and 0 < int(port or 80) < 2**16):
        raise _Unclear
    return host, int(port or 80), (slash + path).rstrip("/")


def _key(given: "Mapping[str, str]", environ: "Mapping[str, str]") -> str | None:
    """Return the key. A key on the command line overrides one in the environment. Raises _Unclear and OSError."""
    key = given.get("--key") or environ.get("PROGRESSD_KEY")
    path = given.get("--key-file") or environ.get("PROGRESSD_KEY_FILE")
    if path and (not key or ("--key-file" in given and "--key" not in given)):
        with open(path, encoding="utf-8", errors="replace") as file:
            key = file.read().strip()
        if not key:
            raise _Unclear
    if key and (not (key.isascii() and key.isprintable()) or " " in key):
        raise _Unclear
    return key


def _head(target: str, authority: str, key: str | None, length: int) -> str:
    fields = {
        "Host": authority,
        "User-Agent": f"progressd/{__version__}",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": length,
        **({"Authorization": f"Bearer {key}"} if key else {}),
    }
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines)


def _report_over_socket(path: str, line: bytes) -> None:
    try:
        answer = _exchange([(_socket.AF_UNIX, path)], line, ANSWER_TIMEOUT, path, ": timed out")
    except ValueError:  # the path contains a NUL
        raise _Unclear from None
    if not answer.startswith(b'{"ref":0,"ok":true'):
        raise _Unclear


def _report_over_http(url: str, host: str, port: int, message: bytes) -> None:
    # as bytes: for a str, Python would import the encoding IDNA
    found = _socket.getaddrinfo(host.encode(), port, 0, _socket.SOCK_STREAM)
    addresses = [(family, address) for family, _, _, _, address in found]
    answer = _exchange(addresses, message, CONNECT_TIMEOUT, url, "; start one with: progressd serve")
    if not (answer.startswith(b"HTTP/1.1 2") and b'"ok":true' in answer):
        raise _Unclear


def _exchange(addresses: "Iterable[_Address]", message: bytes, connect_timeout: float, place: str, hint: str) -> bytes:
    """Send a message to the first address that answers, and return its answer. Raises OSError and _TimedOut."""
    connection = _connected(addresses, connect_timeout, f"no daemon answers at {place}{hint}")
    answer = b""
    try:
        connection.settimeout(ANSWER_TIMEOUT)
        connection.sendall(message)
        while not answer.endswith(END_OF_ANSWER) and len(answer) < MAX_ANSWER:
            chunk = connection.recv(MAX_ANSWER)
            if not chunk:
                break
            answer += chunk
    except TimeoutError:
        raise _TimedOut(f"{place} did not answer within {ANSWER_TIMEOUT:g} seconds") from None
    finally:
        connection.close()
    return answer


def _connected(addresses: "Iterable[_Address]", timeout: float, no_daemon: str) -> _socket.socket:
    """Return a connection to the first address that accepts one. Raises OSError and _TimedOut."""
    error = OSError("no address")
    for family, address in addresses:
        connection = _socket.socket(family, _socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect(address)
        except OSError as failure:
            connection.close()
            error = failure
        else:
            return connection
    if isinstance(error, TimeoutError):
        raise _TimedOut(no_daemon)
    raise error
