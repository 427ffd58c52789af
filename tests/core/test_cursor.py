import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.errors import InvalidInput
from progressd.core.messages import Cursor

stores = st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=32)
offsets = st.integers(0, 10**18 - 1)


@given(stores, offsets)
def test_a_cursor_reads_back_as_it_was_written(store: str, offset: int) -> None:
    cursor = Cursor(store, offset)
    assert Cursor.parse(str(cursor)) == cursor


@given(stores, offsets)
def test_a_cursor_needs_no_escaping_in_a_url_or_a_header(store: str, offset: int) -> None:
    assert set(str(Cursor(store, offset))) <= set("0123456789abcdefghijklmnopqrstuvwxyz-")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "a1b2",
        "a1b2-",
        "-7",
        "a1b2-x",
        "a1b2--7",
        "a1b2-7-7",
        "A1B2-7",
        "a1b2-7 ",
        " a1b2-7",
        "a1b2-7\n",
        "a1b2-+7",
        "a1b2-٧",
        "ä-7",
        "a" * 33 + "-7",
        "a1b2-" + "1" * 19,
    ],
)
def test_an_invalid_cursor_is_rejected(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a cursor"):
        Cursor.parse(text)


@given(st.text(max_size=40))
def test_any_text_is_a_cursor_or_rejected(text: str) -> None:
    try:
        cursor = Cursor.parse(text)
    except InvalidInput:
        return
    assert Cursor.parse(str(cursor)) == cursor


def test_errors_quote_a_short_text() -> None:
    with pytest.raises(InvalidInput) as refused:
        Cursor.parse("x" * 1_000_000)
    assert len(str(refused.value)) < 200
