"""The registration of a command as a job: its name without secrets, and a first request that costs little."""

import json
import os
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from progressd.client.endpoint import request_headers
from progressd.core.event_limits import MAX_LABEL, MAX_LABELS

MASK: Final = "***"
TIMEOUT: Final = 10.0  # seconds
MAX_ANSWER: Final = 65536  # bytes

# The name of an option, a variable, a header or a parameter that contains a secret.
_HIDDEN: Final = (
    r"(?!-*no-)(?:[\w-]*(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|secret[_-]?key)"
    r"|(?:[\w-]*[_-])?(?:pass|pwd|credentials?|auth))"
)
# The patterns are compiled on first use: all together take 5 ms, and most commands need few.
_ASSIGNMENT: Final = r"(?s)(-{0,2}[\w.-]+)=(.+)"
_HEADER: Final = rf"(?si)((?:proxy-)?authorization|cookie|{_HIDDEN}|[\w-]+-(?:key|token)):.*"
_IN_URL: Final = r"(://[^/?#@\s:]*):[^/?#\s]*(?=@)"
_PARAMETER: Final = rf"(?i)([?&;]{_HIDDEN}=)[^&#;\s]+"
_IN_SCRIPT: Final = rf"(?i)((?:^|(?<=\s))(?:-{{0,2}}{_HIDDEN}=|--{_HIDDEN}\s+))\S+"
_MYSQL: Final = frozenset({"mysql", "mysqldump", "mysqladmin", "mysqlimport", "mysqlcheck"})
_ARCHIVERS: Final = frozenset({"7z", "7za", "7zr", "7zz", "rar", "unrar"})
_MARIADB: Final = frozenset({"mariadb", "mariadb-dump", "mariadb-admin", "mariadb-import", "mariadb-check"})
_ATTACHED: Final = {"-p": _MYSQL | _MARIADB | _ARCHIVERS | {"sshpass"}}  # options with the secret in the same word
_SEPARATE: Final = {  # options with the secret in the next word; curl's has the user, too
    "-p": frozenset({"sshpass"}),
    "-a": frozenset({"redis-cli"}),
    "-P": frozenset({"zip", "unzip"}),
    "-u": frozenset({"curl"}),
    "-U": frozenset({"curl"}),
    "--user": frozenset({"curl"}),
    "--proxy-user": frozenset({"curl"}),
}


def new_id() -> str:
    """Return a random UUID (RFC 9562 §5.4). The standard library's module takes 3 ms to import."""
    number = bytearray(os.urandom(16))
    number[6] = number[6] & 0x0F | 0x40
    number[8] = number[8] & 0x3F | 0x80
    text = number.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def name_of(command: Sequence[str]) -> str:
    """Return the command line, with passwords, tokens and other secrets masked."""
    words, hides_next, program = list[str](), False, ""
    for word in command:
        if not program and not re.fullmatch(_ASSIGNMENT, word) and os.path.basename(word) not in ("env", "sudo"):
            program = os.path.basename(word)
        shown, hides_next = (MASK, False) if hides_next else _masked(word, program)
        hides_next = hides_next or (word == "-p" and "login" in command)  # such as docker's
        words.append(shown if MASK in shown else shlex.quote(shown))
    return " ".join(" ".join(words).split())


def _masked(word: str, program: str) -> tuple[str, bool]:
    """Return a word without its secrets, and whether the next word is one."""
    if (found := re.fullmatch(_ASSIGNMENT, word)) and _is_hidden(found[1].lstrip("-")):
        return f"{found[1]}={MASK}", False
    if word.startswith("--") and _is_hidden(word[2:]):
        return word, True
    if program in _SEPARATE.get(word, ()):
        return word, True
    if len(word) > len("-p") and program in _ATTACHED.get(word[:2], ()):
        return f"{word[:2]}{MASK}", False
    if ":" in word and (header := re.fullmatch(_HEADER, word)):
        return f"{header[1]}: {MASK}", False
    text = re.sub(_IN_URL, rf"\1:{MASK}", word) if "@" in word else word
    text = re.sub(_PARAMETER, rf"\1{MASK}", text) if "=" in text else text
    return (re.sub(_IN_SCRIPT, rf"\1{MASK}", text) if " " in text else text), False


def _is_hidden(name: str) -> bool:
    return re.fullmatch(_HIDDEN, name, re.IGNORECASE) is not None


def shortened(text: str, length: int) -> str:
    """Return the text with at most `length` characters, all of which UTF-8 can encode."""
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return text.encode("utf-8", "replace").decode()


def with_origin(given: Mapping[str, str]) -> dict[str, str]:
    """Return the labels with the host and the user, which do not replace given ones and never are too many."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME")
    if not user:
        import pwd

        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            user = str(os.geteuid())
    labels = {
        name: shortened(value, MAX_LABEL) for name, value in (("host", socket.gethostname()), ("user", user)) if value
    }
    labels.update(given)
    return labels if len(labels) <= MAX_LABELS else dict(given)


def register_quickly(url: str, key: str | None, job_id: str, registration: Mapping[str, Any]) -> bool | None:
    """Register a job and start it, with one request. Return whether that succeeded; None if it is not known.

    The HTTP library takes longer to import than everything else together, so it is not used before the command runs.
    This request is HTTP/1.0, so the answer ends with the connection. After any failure the caller has to register
    again, which then also finds the reason.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return False
    events = [
        {"type": "job_created", "job_id": job_id, "data": registration},
        {"type": "status_change", "job_id": job_id, "data": {"new_status": "processing"}},
    ]
    body = "".join(json.dumps(event) + "\n" for event in events).encode()
    headers = {
        "Host": parts.netloc.rpartition("@")[2],
        **request_headers(url, key),
        "Content-Type": "application/x-ndjson",
        "Content-Length": str(len(body)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST {parts.path.rstrip('/')}/api/events HTTP/1.0\r\n{head}\r\n".encode("latin-1") + body
    answer, sent = b"", False
    try:
        with socket.create_connection((parts.hostname, parts.port or 80), TIMEOUT) as connection:
            sent = True
            connection.sendall(request)
            while len(answer) < MAX_ANSWER and (part := connection.recv(MAX_ANSWER)):
                answer += part
        head_text, _, lines = answer.partition(b"\r\n\r\n")
        status = head_text.split(b" ", 2)[1:2]
        answers = [json.loads(line) for line in lines.splitlines()]
        return status == [b"200"] and len(answers) == len(events) and all(one["ok"] for one in answers)
    except OSError:
        return None if sent else False
    except (ValueError, KeyError, TypeError):
        return False
