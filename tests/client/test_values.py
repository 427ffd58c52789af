"""Any value that a program reports is converted or raises an error."""

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from progressd.client import values
from progressd.core import events
from progressd.core.event_limits import MAX_OPTIONS_BYTES

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.decimals(),
    st.fractions(),
    st.booleans(),
    st.text(max_size=5),
    st.none(),
    st.complex_numbers(),
)
keys = st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.tuples(st.integers()))
anything = st.recursive(
    st.one_of(numbers, st.text(), st.binary(), st.dates(), st.just(object())),
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner, inner), st.sets(st.integers()), st.dictionaries(keys, inner)
    ),
    max_leaves=8,
)


class Scalar:
    """A scalar like those of NumPy and PyTorch."""

    ndim = 0

    def __init__(self, value: object) -> None:
        self.value = value

    def item(self) -> object:
        return self.value


class Hostile:
    """Every conversion raises an error."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    item = property(__str__)
    __index__ = __int__ = __float__ = __len__ = __iter__ = __str__


@settings(max_examples=25)
@given(st.dictionaries(keys, anything))
def test_the_daemon_accepts_all_converted_options(options: dict[object, object]) -> None:
    sent = msgspec.json.encode({"options": msgspec.Raw(values.options({}, options))})
    msgspec.json.decode(sent, type=events.Registration)


def test_only_invalid_options_are_dropped() -> None:
    deep: list[object] = []
    for _ in range(40):
        deep = [deep]
    circular: dict[str, object] = {"name": "x"}
    circular["itself"] = circular
    left_out: values.LeftOut = {}
    sent = values.options(
        left_out,
        {
            "lr": math.nan,
            ("a", "b"): 1,
            "betas": (0.9, 0.999),
            "optimizer": {"eps": math.inf, "decay": 0.01, 3: "three"},
            "rate": Scalar(0.5),
            "bad rate": Scalar(math.nan),
            "price": Decimal("1.50"),
            "seed": 2**64 - 1,
            "huge": 10**5000,
            "deep": deep,
            "hostile": Hostile(),
            "name": "a\udcff",
        },
    )
    assert msgspec.json.decode(sent) == {
        "betas": [0.9, 0.999],
        "optimizer": {"decay": 0.01, "3": "three"},
        "rate": 0.5,
        "price": "1.50",
        "seed": 2**64 - 1,
        "name": "a?",
    }
    names = ["options.lr", "options", "options.optimizer.eps", "options.bad rate", "options.huge"]
    assert list(left_out) == [*names, "options.deep", "options.hostile"]
    assert b'"name":"x"' in values.options({}, circular)


def test_too_many_options_or_labels_are_rejected() -> None:
    with pytest.raises(ValueError, match="larger than 65536 bytes"):
        values.options({}, {"text": "x" * MAX_OPTIONS_BYTES})
    circular: dict[object, object] = {}
    circular.update(a=circular, b=[circular])
    with pytest.raises(ValueError, match="larger than 65536 bytes"):
        values.options({}, circular)
    with pytest.raises(ValueError, match="more than 50 labels"):
        values.labels({}, dict.fromkeys(range(51)))


@pytest.mark.parametrize("convert", [values.count, values.percentage, values.seconds, values.lease])
@given(number=st.one_of(numbers, st.just(Hostile()), st.just([1]), st.just(Scalar(1))))
def test_converted_numbers_are_in_range(convert: Callable[[object], float], number: object) -> None:
    try:
        converted = convert(number)
    except Exception:
        return
    assert 0 <= converted <= {values.count: 2**53, values.percentage: 100}.get(convert, math.inf)


@pytest.mark.parametrize(
    ("number", "counted"),
    [(3, 3), (-3, 0), (True, 1), (2**80, 2**53), (3.7, 3), (Decimal("3.7"), 3), (Fraction(7, 2), 3), ("12", 12)],
)
def test_any_number_counts_steps(number: object, counted: int) -> None:
    assert values.count(number) == counted


@pytest.mark.parametrize("number", [math.nan, math.inf, Decimal("sNaN"), "many", None, [3], "9" * 5000])
def test_an_invalid_number_of_steps_is_rejected(number: object) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        values.count(number)


def test_long_texts_are_cut() -> None:
    assert values.text("ä" * 1000, 5) == "ääää…"
    assert values.text("\udcff" * 1000, 3) == "??…"
