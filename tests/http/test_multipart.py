"""Multipart forms that arrive in pieces."""

from pathlib import Path

import httpx
from hypothesis import example, given
from hypothesis import strategies as st
from progressd.config.settings import Limits
from progressd.http.body import MAX_HEADER, FormReader
from support.daemon import RunningDaemon, running_daemon
from support.http_client import (
    BOUNDARY,
    client_of,
    error_of,
    file_part,
    form,
    options_part,
    part,
    post_form,
)
from support.submitting import PDF

CONTENT = st.text("\r\n-boundary x", max_size=60).map(str.encode)


class Memory:
    """Receives the files of a form in memory."""

    def __init__(self) -> None:
        self.files = list[bytes]()
        self.wholes = 0

    async def begin(self, filename: str) -> "Memory":
        self.files.append(b"")
        return self

    async def write(self, data: bytes) -> None:
        self.files[-1] += data

    async def whole(self) -> None:
        self.wholes += 1


@given(CONTENT, st.lists(st.integers(0, 400), max_size=5), st.sampled_from(["", " ", "\t  "]))
@example(b"x", [len(form(file_part(b"x"))) - 3], "")  # cut between the last two dashes
async def test_the_content_does_not_depend_on_the_pieces(content: bytes, cuts: list[int], padding: str) -> None:
    body = form(file_part(content), options_part(content)).replace(
        f"\r\n--{BOUNDARY}\r\n".encode(), f"\r\n--{BOUNDARY}{padding}\r\n".encode()
    )
    memory = Memory()
    reader = FormReader(BOUNDARY, memory, ["file"], Limits(), 1)
    ends = sorted({min(cut, len(body)) for cut in cuts} | {len(body)})
    for start, end in zip([0, *ends], ends, strict=False):
        await reader.feed(body[start:end])
    assert (memory.files, memory.wholes, reader.fields.get("options", b"")) == ([content], 1, content)
    assert reader.ended


async def test_part_headers_have_a_limit(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:

        def padded(name: str, content: bytes, size: int) -> bytes:
            """Return a part whose header has `size` bytes."""
            file = '; filename="book.pdf"' if name == "file" else ""
            spare = size - (len(part(name, b"", file)) - len(f"--{BOUNDARY}\r\n\r\n\r\n\r\n"))
            return part(name, content, file + "; a=b".ljust(spare, "x"))

        field = b"x" * (64 << 10)  # larger than a header may be
        for one in ("file", "note"):
            parts = {"file": file_part(), "note": part("note", field)}
            parts[one] = padded(one, PDF if one == "file" else field, MAX_HEADER)
            assert (await post_form(client, *parts.values())).status_code == 202
            for size in (MAX_HEADER + 1, 750_000):
                parts[one] = padded(one, b"x", size)
                rejected = await post_form(client, *parts.values())
                assert rejected.status_code == 413
                assert error_of(rejected) == "a part of the form has more than 8 headers, or one larger than 4 KiB"


async def test_options_and_labels_may_come_from_a_file(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for filename in ("o.json", ""):
        file = f'; filename="{filename}"\r\nContent-Type: application/json'
        parts = [part("options", b'{"dpi": 150}', file), file_part(), part("labels", b'{"team": "scan"}', file)]
        answer = await post_form(client, *parts)
        job = await daemon.daemon.registry.get(answer.json()["job_id"])
        assert (job.options["dpi"], job.labels) == (150, {"team": "scan"})
        assert daemon.daemon.files.input(job.id).read_bytes() == PDF
        assert (await post_form(client, file_part(), part("options", b'{"dip": 150}', file))).status_code == 422
        assert (await post_form(client, file_part(), part("labels", b"x" * 70_000, file))).status_code == 413
        assert (await post_form(client, file_part(), part("options", b"", file))).status_code == 202
