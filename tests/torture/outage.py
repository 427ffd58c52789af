"""An outage: for how long the disk of a daemon failed, and which promises were off meanwhile; never for longer."""

import math
from dataclasses import dataclass


@dataclass
class Outage:
    """Times in seconds; it is over once something that was sent afterwards has been taken."""

    began: float  # before anything failed
    after: int  # the newest offset that anybody had been told then
    over: float = math.inf  # when that was sent which was taken
    upto: float = math.inf  # its offset

    def excuses_refusal(self, sent: float) -> bool:
        """Whether something that was sent then, and refused, met the disk while it failed."""
        return sent < self.over

    def excuses_failure(self, started: int, ended: int) -> bool:
        """Whether a job of the runner, by the offsets of its start and its end, was worked on meanwhile."""
        return ended > self.after and started < self.upto

    def could_be_written(self, told: float, within: float) -> float:
        """From when on progress that was told then could be written, where so many seconds are allowed for it."""
        return told if told + within <= self.began else max(told, self.over)
