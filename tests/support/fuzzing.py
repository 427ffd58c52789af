"""Random changes of valid input. A seed determines each case, so that it can be repeated.

    case = Case("1.7", "requests", 42, 3)       # a seed, a kind, a number, a step
    case.data                                   # its bytes

CORPUS has valid input by kind, and WORDS has harmful strings.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from wsproto.frame_protocol import Opcode

from support.daemon import completed, failed, progress, registered, status_change
from support.http_client import BOUNDARY, FORM_TYPE, file_part, form, options_part
from support.peer import frame, request, upgrade
from support.samples import job_id

ID, ENDING = JOBS = [job_id(number) for number in (1, 2)]  # a job, and one that may be ended; see `job_in`
CURSOR: Final = "cd06f405-30"
TOKEN: Final = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOiJwcm9ncmVzc2Q6d2F0Y2giLCJzdWIiOiJqb2JzIn0.c2lnbmF0dXJl"
NAMES: Final = [
    *("book.pdf", "../../etc/passwd", "..\\..\\boot.ini", "/etc/shadow", "a/../b.pdf", "%2e%2e%2fx.pdf", ".", "..", ""),
    *("a\r\nSet-Cookie: a=b.pdf", "a\nb.pdf", "a\0b.pdf", 'say \\"hi\\".pdf', "a; filename=b.pdf", "x" * 5000 + ".pdf"),
    *("Bücher.pdf", "\u202efdp.exe", "日本.pdf", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")),
    *("<script>.pdf", "CON", "-rf", "$(id)", "{output}", "a%0d%0ab.pdf", "UTF-8''a%00b.pdf", "\x1b[2J.pdf"),
]


def _posted(target: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    return request(target, {"Content-Length": str(len(body)), **(headers or {})}, method="POST") + body


def _chunked(target: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    pieces = [body[start : start + 30] for start in range(0, len(body), 30)]
    chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return request(target, {"Transfer-Encoding": "chunked", **(headers or {})}, method="POST") + chunks + b"0\r\n\r\n"


def _json(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


FORM: Final = form(file_part(), options_part({"dpi": 300}))
LINES: Final = [
    *_json(registered(ID, kind="a", labels={"team": "scan"}, total_steps=3, lease_seconds=60)),
    *_json({"ref": 1, **progress(ID, 1, 2, "a")}, {"ref": "", **progress(ID, 2, 2, "\u00fc" * 20)}),
    *_json(status_change(ID, "processing", "queued"), {"ref": [1], **completed(ENDING, page_count=3)}),
    *_json(failed(ENDING, "no"), {"type": "page_preview", "job_id": ID, "data": {"page_number": 1, "stage": "a"}}),
]
NDJSON: Final = {"Content-Type": "application/x-ndjson"}
SAID: Final = _json(
    {"type": "subscribe", "topics": ["jobs", f"job:{ID}", f"batch:{job_id(3)}"], "since": CURSOR},
    {"type": "unsubscribe", "topics": ["jobs"]},
    {"type": "ping"},
)

CORPUS: Final[Mapping[str, Sequence[bytes]]] = {
    "requests": [
        request("/api/jobs?limit=5&offset=0&status=queued&label=a=b"),
        request(f"/api/jobs/{ID}", {"If-None-Match": '"x"', "Range": "bytes=0-5"}),
        request(f"/api/jobs/{ID}?since={CURSOR}&wait=0"),
        request(f"/api/jobs/{ID}/events", {"Last-Event-ID": CURSOR, "Connection": "close"}),
        request(f"/api/jobs/{ID}", {"Authorization": "Bearer pgd_x", "X-Forwarded-For": "1.1.1.1, ::1"}),
        request(f"/api/jobs/{ID}/download?token={TOKEN}", {"Range": "bytes=0-1, 3-", "If-Range": '"x"'}),
        request("/static/main.js", {"Accept-Encoding": "gzip", "Cookie": "a=b; c=d"}),
        request("/api/metrics", {"Accept": "application/openmetrics-text;version=1.0.0"}),
        request(f"/api/jobs/{ENDING}", method="DELETE"),
        request("/api/jobs", {"Origin": "http://daemon", "Access-Control-Request-Method": "GET"}, method="OPTIONS"),
        request(f"http://daemon/api/jobs/{ID}?wait=0", {"Host": "127.0.0.1"}),
        request("HTTPS://[::1]:8080//api/jobs#/token"),
        request("*", method="OPTIONS"),
        _posted("/api/jobs", b'{"kind":"a","labels":{"team":"scan"}}\n'),
        _posted("http://daemon/api/jobs#/token", b'{"kind":"a"}'),
        _posted("/api/convert", FORM, FORM_TYPE),
        _posted("/api/events", b"\n".join(LINES), NDJSON),
        _posted(f"/api/jobs/{ID}/events", LINES[1]),
        _posted(f"/api/jobs/{ENDING}/retry", b""),
    ],
    "chunks": [
        _chunked("/api/events", b"\n".join(LINES), NDJSON),
        _chunked("/api/jobs", b'{"kind":"a","total_steps":1}'),
        _chunked("/api/convert", FORM, FORM_TYPE),
        request("/api/events", {"Transfer-Encoding": "chunked"}, method="POST")
        + b'5;x=y\r\n{"a":\r\n1\r\n1\r\n0\r\nT: x\r\n\r\n',
    ],
    "forms": [form(file_part(filename=name), options_part({"dpi": 300})) for name in NAMES],
    "bodies": [b"\n".join(LINES), *LINES, b'{"kind":"a","labels":{"team":"scan"}}'],
    "handshakes": [
        upgrade(f"/ws/jobs/{ID}?since={CURSOR}&interval=0.5&types=progress,error") + frame(Opcode.PING, b"x"),
        upgrade(f"/ws?token={TOKEN}", {"Sec-WebSocket-Protocol": f"progressd, progressd.token.{TOKEN}"}),
        upgrade("/ws") + frame(Opcode.TEXT, SAID[0]) + frame(Opcode.CLOSE),
        upgrade("/ws/jobs", {"Origin": "http://daemon"}) + frame(Opcode.TEXT, b"a", final=False) + frame(0, b"b"),
        upgrade(f"/ws/batch/{job_id(3)}", {"Sec-WebSocket-Extensions": "permessage-deflate"}),
    ],
    "frames": [
        *(frame(Opcode.TEXT, text) for text in SAID),
        frame(Opcode.TEXT, SAID[0][:30], final=False) + frame(0, SAID[0][30:]),
        frame(Opcode.BINARY, b"x" * 200) + frame(Opcode.PING, b"y" * 125),
        frame(Opcode.PONG) + frame(Opcode.TEXT, b'{"type":"ping"}', reserved=4),
    ],
    "messages": SAID,
    "lines": LINES,
    "cursors": [CURSOR.encode(), b"0-0", b"z" * 32 + b"-" + b"9" * 18],
    "tokens": [TOKEN.encode(), b"a.b.c", b"eyJhbGciOiJub25lIn0.e30."],
    "topics": [b"jobs", b"job:" + ID.encode(), b"batch:" + job_id(3).encode()],
    "targets": [f"/ws/jobs/{ID}?since={CURSOR}&interval=0.5&types=progress,error".encode(), b"/ws", b"/ws/jobs?a=%41"],
    "hosts": [b"127.0.0.1:8080", b"[::1]:80", b"localhost.", b"http://daemon:80", b"https://[::1]", b"null"],
    "addresses": [b"1.1.1.1, ::1, 10.0.0.2", b'for="[2001:db8::1]:80";by=x, for=10.1.1.1', b"10.0.0.1:80,unknown"],
    "names": [name.encode() for name in NAMES],
    "keys": [
        b'{"keys":[{"name":"a","hash":"%s","scopes":["read"],"created_at":"2026-01-01T00:00:00Z",' % (b"0f" * 32)
        + b'"expires_at":"2027-01-01T00:00:00Z","labels":{"a":"b"}}]}'
    ],
    "config": [
        b'[server]\nhost = "0.0.0.0"\nport = 80\ntrusted_proxies = ["10.0.0.0/8"]\n[auth]\nrequired = true\n',
        b'[limits]\nmax_upload_bytes = "5MiB"\nhandshake_timeout = "500ms"\nexempt_addresses = ["::1"]\n',
        b'[pipelines.a]\ncommand = ["cp", "{input}", "{output}"]\naccept = ["a/*"]\nprogress_pattern = "(\\\\d+) %"\n',
        b'[pipelines.a]\ncommand = ["true"]\n[pipelines.a.options.x]\ntype = "integer"\ndefault = 1\nminimum = 0\n',
    ],
}
WORDS: Final = [
    *(b"\r\n", b"\n", b"\0", b"\xff", b"%00", b"%2e%2e%2f", b"..", b"{", b"[" * 200, b'"', b"\\u0000", b"-1", b"1e999"),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 9999999999999999999\r\n", b"Host: x\r\n", b"HTTP/1.0"),
    *(b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"HTTP/2.0", b"PRI * ", b"GET http://[ ", b";q=", b"\x80"),
    *(b"\nHost: x\n", b"\n\n", b"//", b"#", b"http://daemon"),
    *(b'"\\ud800"', b"\xed\xa0\x80", b"9" * 400, b"NaN", b"null", b"0x1", b"{" + b'"a":{' * 500, b"\xef\xbb\xbf"),
    BOUNDARY.encode(),
]


_PLACE: Final = job_id(0)[19:28].encode()


def _place(step: int) -> bytes:
    return _PLACE[:5] + b"%04x" % step


def job_in(step: int, job: str) -> str:
    """Return the id of one of JOBS in a step: each step has new jobs."""
    return job.replace(_PLACE.decode(), _place(step).decode())


class Case(NamedTuple):
    """A case: its kind, its number, and the step that runs it."""

    seed: str
    kind: str
    number: int
    step: int

    @property
    def data(self) -> bytes:
        """Return an item of the corpus with up to six changes; the framing of bodies stays valid."""
        dice = random.Random(f"{self.seed}.{self.kind}.{self.number}")
        data = _mutated(dice, CORPUS[self.kind]).replace(_PLACE, _place(self.step))
        if self.kind == "forms":
            return _posted(dice.choice(["/api/convert", "/api/batch"]), data, FORM_TYPE)
        if self.kind == "bodies":
            send = dice.choice([_posted, _chunked])
            return send(dice.choice(["/api/events", "/api/jobs"]), data, dice.choice([NDJSON, {}]))
        return data

    def __str__(self) -> str:
        return f"{self.kind} {self.number} of seed {self.seed}: {self.data!r}"


def _mutated(dice: random.Random, corpus: Sequence[bytes]) -> bytes:
    data = bytearray(dice.choice(corpus))
    for _ in range(dice.choice((0, 1, 1, 2, 3, 6))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(6):
            case 0:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del data[at : at + dice.randint(1, 40)]
            case 2:
                data[at:at] = dice.choice(WORDS)
            case 3:
                other = dice.choice(corpus)
                data[at:] = other[dice.randrange(len(other) + 1) :]
            case 4:
                data[at:at] = data[at : at + dice.randint(1, 200)] * dice.randint(1, 20)
            case 5:
                data[at : at + 1] = bytes([data[at] ^ 1 << dice.randrange(8)]) if at < len(data) else b""
    return bytes(data)
