"""The messages in memory in the order of their offsets, for watchers of all jobs. It never decides what stays."""

from bisect import bisect_left, bisect_right, insort
from typing import Final

from progressd.broadcast.envelope import Envelope

BLOCK_BITS: Final = 9  # a block has the messages of 512 offsets


class Recent:
    """Adds, removes and finds a message in the same time, however many there are."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[int, Envelope]] = {}
        self._numbers: list[int] = []  # of the blocks, ascending

    def add(self, item: Envelope) -> None:
        """Add a message."""
        number = item.offset >> BLOCK_BITS
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = {}
            insort(self._numbers, number)
        block[item.offset] = item

    def remove(self, item: Envelope) -> None:
        """Remove a message that was added."""
        number = item.offset >> BLOCK_BITS
        block = self._blocks[number]
        del block[item.offset]
        if not block:
            del self._blocks[number]
            del self._numbers[bisect_left(self._numbers, number)]

    def between(self, after: int, upto: int, most: int) -> list[Envelope]:
        """Return the first `most` messages with after < offset ≤ upto, in order."""
        found = list[Envelope]()
        for place in range(bisect_left(self._numbers, after >> BLOCK_BITS), len(self._numbers)):
            block = self._blocks[self._numbers[place]]
            offsets = sorted(block)
            wanted = offsets[bisect_right(offsets, after) : bisect_right(offsets, upto)]
            found += [block[offset] for offset in wanted[: most - len(found)]]
            if len(found) == most or offsets[-1] > upto:
                break
        return found
