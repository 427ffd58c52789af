"""What one process of a pipeline may take of the machine, and what an end tells about a limit that was reached."""

import re
import signal
from typing import Final, NamedTuple

from progressd.config.settings import RunnerSettings
from progressd.config.units import seconds_text, size_text
from progressd.core.pipeline import Pipeline
from progressd.runner.output import last_words

CPU_GRACE: Final = 5  # seconds of processor time from SIGXCPU to SIGKILL

_COMPLAINT = re.compile(rb"out ?of ?memory|MemoryError|bad_alloc|cannot allocate memory", re.IGNORECASE)
_FATAL = (signal.SIGKILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGILL)  # the kernel's, and allocators' that give up


class ResourceLimits(NamedTuple):
    """In bytes and seconds of processor time, each for every process of its own."""

    memory: int
    cpu: float
    file: int
    open_files: int

    @classmethod
    def of(cls, pipeline: Pipeline, runner: RunnerSettings) -> "ResourceLimits":
        """The pipeline's own, and the runner's where it has none."""
        return cls(
            pipeline.max_memory_bytes or runner.max_memory_bytes,
            pipeline.max_cpu_seconds or runner.max_cpu_seconds,
            pipeline.max_file_bytes or runner.max_file_bytes,
            pipeline.max_open_files or runner.max_open_files,
        )

    def words(self) -> list[str]:
        """Each as NAME:SOFT:HARD, named as in setrlimit(2), for `become`."""
        # RLIMIT_DATA and not RLIMIT_AS: runtimes with a heap of their own reserve addresses by the terabyte.
        cpu = max(1, round(self.cpu))
        return [
            f"DATA:{self.memory}:{self.memory}",
            f"CPU:{cpu}:{cpu + CPU_GRACE}",
            f"FSIZE:{self.file}:{self.file}",
            f"NOFILE:{self.open_files}:{self.open_files}",
            "CORE:0:0",
        ]

    def told(self, status: int, stderr: bytes) -> str:
        """What an exit status other than 0, negative for a signal, says, as the end of a sentence about the child."""
        number = -status if status < 0 else status - 128  # as a shell tells of what it has run
        if number == signal.SIGXCPU:
            return f"used more than {seconds_text(self.cpu)} of processor time, its limit"
        if number == signal.SIGXFSZ:
            return f"wrote a file larger than {size_text(self.file)}, its limit"
        end = f"was ended by {_signal_name(-status)}" if status < 0 else f"failed with exit status {status}"
        if number in _FATAL or _COMPLAINT.search(stderr):
            return f"{end}, perhaps because it needs more memory than its limit of {size_text(self.memory)}"
        words = last_words(stderr)
        return f"{end}: {words}" if words else end


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"
