"""WebSocket handshakes compared with wsproto: no request is accepted that a library rejects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.net.handshake import HandshakeRequest, accepting, read_handshake, rejecting
from support.peer import upgrade
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Event, RejectConnection, RejectData, Request
from wsproto.utilities import ProtocolError

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
REQUIRED = [
    b"Host: daemon:8080",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: " + KEY,
    b"Sec-WebSocket-Version: 13",
]
USUAL = [
    b"uPGRADE:\t WebSocket \t",
    b"Connection: keep-alive , UPGRADE",
    b"Connection: keep-alive",
    b"Origin: http://daemon:8080",
    b"Cookie: caf\xc3\xa9=1; \x80",
    b"Empty:",
    b"X-Tab: a\tb  c",
    b"Sec-WebSocket-Protocol: one, progressd.token.x",
    b"sec-websocket-protocol: two",
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    b"Host: another",
    b"Sec-WebSocket-Version: 8",
    b"Sec-WebSocket-Key:",
    b"Upgrade: h2c",
]
WRONG = [
    b"Content-Length: 0",
    b"Transfer-Encoding: chunked",
    b"No colon",
    b"Space : before",
    b" folded",
    b": no name",
    b"Control: \x00",
    b"Control: \x0b",
    b"Control: \x7f",
    b"Bare: \r",
    b"Bare: \n",
    b"Na\xefve: name",
    b"Host: \xff",
    b"Sec-WebSocket-Protocol: \xff",
    b"Sec-WebSocket-Extensions: \xff",
    b"",
]
FIRST = [b"GET /ws HTTP/1.1", b"GET /ws/jobs?since=a%20b&x=\x7e HTTP/1.1", b"GET /ws/ HTTP/1.1"]
WRONG_FIRST = [
    b"GET /wsx HTTP/1.1",
    b"GET /ws/# HTTP/1.1",
    b"GET /ws/\x7f HTTP/1.1",
    b"GET  /ws HTTP/1.1",
    b"GET /ws HTTP/1.0",
    b"POST /ws HTTP/1.1",
    b"GET /ws HTTP/1.1 ",
]
required = st.lists(st.sampled_from(REQUIRED), max_size=1)
lines = st.tuples(
    st.permutations(REQUIRED),
    required,
    st.lists(st.sampled_from(USUAL), max_size=4),
    st.lists(st.sampled_from(WRONG), max_size=1),
)


def of_wsproto(head: bytes) -> Request | None:
    protocol = WSConnection(ConnectionType.SERVER)
    try:
        protocol.receive_data(head)
        [event] = protocol.events()
    except (ProtocolError, UnicodeError, ValueError):
        return None
    return event if isinstance(event, Request) else None


def comparable(request: HandshakeRequest) -> tuple[object, ...]:
    removed = (b"host", b"sec-websocket-protocol", b"sec-websocket-extensions")
    headers = [header for header in request.headers if header[0] not in removed]
    return request.target, request.host, list(request.subprotocols), headers


@given(st.sampled_from(3 * FIRST + WRONG_FIRST), lines, st.just(99) | st.integers(0, 12), st.binary(max_size=3))
def test_what_is_accepted_is_what_wsproto_reads(
    first: bytes, parts: tuple[list[bytes], ...], missing: int, behind: bytes
) -> None:
    some = [line for part in parts for line in part]
    del some[missing : missing + 1]
    head = b"\r\n".join([first, *some, b"", b""])
    read = read_handshake(head + behind)
    whole = head[: head.find(b"\r\n\r\n") + 4]
    expected = of_wsproto(whole)
    if read is not None:
        assert expected is not None
        assert head[: read.size] == whole
        assert comparable(read) == (expected.target, expected.host, expected.subprotocols, expected.extra_headers)
        assert read.key == dict(expected.extra_headers)[b"sec-websocket-key"]
    elif first in FIRST and not set(some) & set(WRONG):
        assert expected is None


@given(st.binary(max_size=200))
def test_any_bytes_may_be_read(data: bytes) -> None:
    head = upgrade()
    for place in (0, 20, len(head) - 4):
        read_handshake(head[:place] + data + head[place:])
    assert read_handshake(head[:-1]) is None


def answered(response: bytes) -> list[Event]:
    client = WSConnection(ConnectionType.CLIENT)
    asked = client.send(Request(host="daemon", target="/ws", subprotocols=["one", "two"]))
    request = read_handshake(asked)
    assert request is not None
    client.receive_data(response.replace(b"PROOF", accepting(request.key, None).split(b"\r\n")[3]))
    return list(client.events())


@pytest.mark.parametrize("subprotocol", [None, "two"])
def test_a_client_accepts_the_response(subprotocol: str | None) -> None:
    lines = accepting(KEY, subprotocol).split(b"\r\n")
    assert lines[3] == b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 §1.3
    [event] = answered(b"\r\n".join([*lines[:3], b"PROOF", *lines[4:]]))
    assert event == AcceptConnection(subprotocol=subprotocol, extensions=[], extra_headers=[])


def test_a_rejection_has_a_body() -> None:
    head, body, end = answered(rejecting(404, [(b"Content-Type", b"application/json")], b'{"error": "no job"}'))
    assert isinstance(head, RejectConnection)
    assert (head.status_code, dict(head.headers)[b"content-type"]) == (404, b"application/json")
    assert body == RejectData(data=b'{"error": "no job"}', body_finished=False)
    assert end == RejectData(data=b"", body_finished=True)
