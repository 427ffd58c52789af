"""An outage of the daemon's disk, and the exceptions it permits."""

import math
from dataclasses import dataclass


@dataclass
class Outage:
    """Times in seconds. It ends when a later event is accepted."""

    began: float  # just before the first failure
    after: int  # the newest delivered offset at that time
    over: float = math.inf  # when the accepted event was sent
    upto: float = math.inf  # its offset

    def excuses_refusal(self, sent: float) -> bool:
        """Return whether an event sent then may be rejected."""
        return sent < self.over

    def excuses_failure(self, started: int, ended: int) -> bool:
        """Return whether a job with these offsets ran during the outage."""
        return ended > self.after and started < self.upto

    def could_be_written(self, told: float, within: float) -> float:
        """Return when progress acknowledged then could be written, given `within` seconds."""
        return told if told + within <= self.began else max(told, self.over)
