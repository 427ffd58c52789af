"""Resource limits of each process of a pipeline, and the exit statuses that indicate a reached limit."""

import re
import resource
import signal
from typing import Final, NamedTuple

from progressd.config.settings import RunnerSettings
from progressd.config.units import seconds_text, size_text
from progressd.core.pipeline import Pipeline
from progressd.runner.output import summary

CPU_GRACE: Final = 5  # seconds of processor time from SIGXCPU to SIGKILL

_OUT_OF_MEMORY = re.compile(rb"out ?of ?memory|MemoryError|bad_alloc|cannot allocate memory", re.IGNORECASE)
_FATAL = (signal.SIGKILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGILL)  # sent if the kernel or allocator lacks memory


class ResourceLimits(NamedTuple):
    """Limits in bytes and seconds of CPU time. They apply to each process separately."""

    memory: int
    cpu: float
    file: int
    open_files: int

    @classmethod
    def of(cls, pipeline: Pipeline, runner: RunnerSettings) -> "ResourceLimits":
        """Return the limits of the pipeline. The defaults are the limits of the runner."""
        return cls(
            pipeline.max_memory_bytes or runner.max_memory_bytes,
            pipeline.max_cpu_seconds or runner.max_cpu_seconds,
            pipeline.max_file_bytes or runner.max_file_bytes,
            pipeline.max_open_files or runner.max_open_files,
        )

    def arguments(self) -> list[str]:
        """Return the limits as options of prlimit(1). No limit exceeds the daemon's own."""
        cpu = max(1, round(self.cpu))
        limits = {  # not RLIMIT_AS: some runtimes reserve terabytes of address space
            "data": (self.memory, self.memory),
            "cpu": (cpu, cpu + CPU_GRACE),
            "fsize": (self.file, self.file),
            "nofile": (self.open_files, self.open_files),
            "core": (0, 0),
        }
        return [f"--{name}={_within(name, soft)}:{_within(name, hard)}" for name, (soft, hard) in limits.items()]

    def describe_exit(self, status: int, stderr: bytes) -> str:
        """Return a description of a failure, to follow the name of the program. A negative status is a signal."""
        number = -status if status < 0 else status - 128  # a shell adds 128 to the signal of its command
        if number == signal.SIGXCPU:
            return f"used more than {seconds_text(self.cpu)} of processor time, its limit"
        if number == signal.SIGXFSZ:
            return f"wrote a file larger than {size_text(self.file)}, its limit"
        end = f"was killed by {_signal_name(-status)}" if status < 0 else f"failed with exit status {status}"
        if number in _FATAL or _OUT_OF_MEMORY.search(stderr):
            return f"{end}, perhaps because it exceeded its memory limit of {size_text(self.memory)}"
        reason = summary(stderr)
        return f"{end}: {reason}" if reason else end


def _within(name: str, limit: int) -> int:
    maximum = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    return limit if maximum == resource.RLIM_INFINITY else min(limit, maximum)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"
