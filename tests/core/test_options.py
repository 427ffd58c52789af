import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.errors import InvalidOption
from progressd.core.pipeline import Option, Pipeline, checked_options

PIPELINE = Pipeline(
    ("x",),
    options={
        "dpi": Option("integer", 300, minimum=50, maximum=2400),
        "ocr": Option("boolean", False, needs="tesseract"),
        "gamma": Option("number", 1, minimum=0),
        "paper": Option("string", "A4", choices=("A4", "letter")),
        "title": Option("string"),
    },
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def everything(_program: str) -> bool:
    return True


def nothing(_program: str) -> bool:
    return False


def test_defaults_are_filled_in() -> None:
    assert checked_options(PIPELINE, {}, nothing) == {"dpi": 300, "ocr": False, "gamma": 1, "paper": "A4"}


def test_given_values_replace_defaults() -> None:
    given = {"title": "x", "gamma": 0.5, "dpi": 600, "ocr": True, "paper": "letter"}
    assert list(checked_options(PIPELINE, given, everything).items()) == [
        ("dpi", 600), ("ocr", True), ("gamma", 0.5), ("paper", "letter"), ("title", "x")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("dpi", 49, "option dpi: 49 is not an integer from 50 to 2400"),
        ("dpi", 2401, "option dpi: 2401 is not an integer from 50 to 2400"),
        ("dpi", True, "option dpi: true is not an integer from 50 to 2400"),
        ("dpi", 300.0, "option dpi: 300.0 is not an integer from 50 to 2400"),
        ("dpi", "300", 'option dpi: "300" is not an integer from 50 to 2400'),
        ("dpi", None, "option dpi: null is not an integer from 50 to 2400"),
        ("ocr", 1, "option ocr: 1 is not true or false"),
        ("gamma", -1, "option gamma: -1 is not a number of at least 0"),
        ("gamma", math.inf, "option gamma: null is not a number of at least 0"),
        ("paper", "A3", 'option paper: "A3" is not one of "A4", "letter"'),
        ("title", "x" * 5000, "is not text of at most 4096 characters"),
        ("title", ["x"], 'option title: ["x"] is not text of at most 4096 characters'),
        ("DPI", 300, 'there is no option "DPI": choose from dpi, ocr, gamma, paper, title'),
        ("pdi", 300, "; did you mean dpi?"),
    ],
)
def test_an_impossible_value_is_named(name: str, value: object, said: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        checked_options(PIPELINE, {name: value}, everything)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_missing_program_rejects_true() -> None:
    with pytest.raises(
        InvalidOption, match=r"^option ocr: true is not possible, because tesseract is not installed on the server$"
    ):
        checked_options(PIPELINE, {"ocr": True}, nothing)
    assert checked_options(PIPELINE, {"ocr": False}, nothing)["ocr"] is False


@given(st.dictionaries(st.sampled_from([*PIPELINE.options, "other"]), VALUES))
def test_any_value_is_accepted_or_rejected(given: dict[str, object]) -> None:
    try:
        checked = checked_options(PIPELINE, given, everything)
    except InvalidOption:
        return
    assert type(checked["dpi"]) is int
    assert type(checked["ocr"]) is bool
    assert given.items() <= checked.items()
