import contextlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from progressd.auth.api_keys import new_secret
from progressd.client.endpoint import credentials, read_key
from progressd.client.errors import InvalidKey


def test_a_key_goes_into_the_header_and_none_goes_nowhere() -> None:
    secret = new_secret()
    assert credentials(secret) == {"Authorization": f"Bearer {secret}"}
    assert credentials(None) == {}


@given(st.text(min_size=1))
@example("pgd_\r\nX-Evil: 1")
@example("pgd_\x85")
def test_what_is_taken_can_stand_in_a_header(text: str) -> None:
    with contextlib.suppress(InvalidKey):
        header = credentials(text)["Authorization"]
        assert header.isascii()
        assert header.isprintable()
        assert header.split(" ") == ["Bearer", text]


@pytest.mark.parametrize("text", ["pgd_a b", "pgd_a\r\nX-Evil: 1", "pgd_ö", "pgd_\x00"])
def test_what_cannot_is_not_told(text: str) -> None:
    with pytest.raises(
        InvalidKey, match=r"^the key is none: there are spaces or other characters in it that no key has$"
    ):
        credentials(text)


def test_a_file_has_a_key_and_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("pgd_x\n")
    assert read_key(path) == "pgd_x"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "the key in PATH cannot be read: No such file or directory"),
        (b" \n", "the key in PATH is empty"),
        (
            b"pgd_secret\npgd_other\n",
            "the key in PATH is none: there are spaces or other characters in it that no key has",
        ),
        (b"\xff\xfe", "PATH has no key in it, but something else"),
    ],
)
def test_a_file_without_a_key_is_named_and_what_is_in_it_is_not(
    content: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidKey) as caught:
        read_key(path)
    assert str(caught.value) == said.replace("PATH", str(path))
