"""A multipart body in pieces: the file in it comes out as it went in, wherever the pieces are cut."""

from pathlib import Path

import pytest
from http_client import BOUNDARY, FORM_TYPE, client_of, file_part, form, options_part, post_pieces
from hypothesis import example, given
from hypothesis import strategies as st
from progressd.rest.multipart import WholeBoundaries
from submitting import PDF
from werkzeug.sansio.multipart import Data, Epilogue, MultipartDecoder, NeedData

from daemon import running_daemon

CONTENT = st.text("\r\n-boundary x", max_size=60).map(str.encode)


@given(CONTENT, st.lists(st.integers(0, 400), max_size=5), st.sampled_from(["", " ", "\t  "]))
@example(b"x", [len(form(file_part(b"x"))) - 3], "")  # between the two dashes at the end
def test_the_content_is_whole_wherever_the_pieces_end(content: bytes, cuts: list[int], padding: str) -> None:
    body = form(file_part(content), options_part(b"{}")).replace(
        f"--{BOUNDARY}\r\n".encode(), f"--{BOUNDARY}{padding}\r\n".encode()
    )
    assert read(body, cuts) == [content, b"{}"]


def read(body: bytes, cuts: list[int]) -> list[bytes]:
    """The contents of the parts."""
    decoder, boundaries = MultipartDecoder(BOUNDARY.encode()), WholeBoundaries(BOUNDARY.encode())
    contents, begun = list[bytes](), False
    ends = sorted({min(cut, len(body)) for cut in cuts} | {len(body)})
    pieces = [boundaries.cut(body[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    for piece in [*pieces, boundaries.held, None]:
        decoder.receive_data(piece)
        while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
            if isinstance(event, Data):
                if not begun:
                    contents.append(b"")
                contents[-1] += event.data
                begun = event.more_data
    return contents


@pytest.mark.parametrize("left", range(1, 8))
async def test_an_upload_is_kept_as_it_was_sent_wherever_its_pieces_end(tmp_path: Path, left: int) -> None:
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        body = form(file_part(PDF))
        headers = {"Host": client.base_url.netloc.decode(), "Content-Length": str(len(body)), **FORM_TYPE}
        answer = await post_pieces(client, "/api/convert", [body[:-left], body[-left:]], headers)
        assert answer.status_code == 202, answer.text
        assert daemon.daemon.files.input(answer.json()["job_id"]).read_bytes() == PDF
