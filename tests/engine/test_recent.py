"""Recent messages against a sorted list."""

from hypothesis import given
from hypothesis import strategies as st
from progressd.broadcast.envelope import Envelope
from progressd.engine.registry import Recent
from support.samples import moved

OFFSETS = st.integers(1, 3000)


@given(st.lists(st.tuples(st.booleans(), OFFSETS), max_size=200), OFFSETS, OFFSETS, st.integers(1, 50))
def test_messages_between_offsets_are_in_order(steps: list[tuple[bool, int]], after: int, upto: int, most: int) -> None:
    recent, there = Recent(), dict[int, Envelope]()
    for add, offset in steps:
        if add and offset not in there:
            there[offset] = Envelope(offset, moved(1))
            recent.add(there[offset])
        elif not add and offset in there:
            recent.remove(there.pop(offset))
    expected = [there[offset] for offset in sorted(there) if after < offset <= upto]
    assert recent.between(after, upto, most) == expected[:most]


def test_removed_messages_leave_nothing() -> None:
    recent, items = Recent(), [Envelope(offset, moved(1)) for offset in range(1, 5000)]
    for item in items:
        recent.add(item)
    for item in items:
        recent.remove(item)
    assert recent._blocks == {}
    assert recent._numbers == []
