"""What one process of a pipeline may take of the machine, and what an end tells about a limit that was reached."""

import re
import resource
import signal
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from progressd.config.quantities import seconds_text, size_text
from progressd.config.settings import RunnerSettings
from progressd.core.pipeline import Pipeline
from progressd.producers.last_words import last_words

FIRST_TO_GO: Final = 500  # added to a child's badness, of 1000 (proc(5), oom_score_adj): rather it than the daemon
EARLY_MOST: Final = 100  # processes that are looked for because they may have been there before their limits
CPU_GRACE: Final = 5  # seconds of processor time from SIGXCPU to SIGKILL

_COMPLAINT = re.compile(rb"out ?of ?memory|MemoryError|bad_alloc|cannot allocate memory", re.IGNORECASE)
_FATAL = (signal.SIGKILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGILL)  # the kernel's, and allocators' that give up

log = structlog.get_logger(__name__)


class ChildLimits(NamedTuple):
    """In bytes and seconds of processor time, each for every process of its own."""

    memory: int
    cpu: float
    file: int
    open_files: int

    @classmethod
    def of(cls, pipeline: Pipeline, runner: RunnerSettings) -> "ChildLimits":
        """The pipeline's own, and the runner's where it has none."""
        return cls(
            pipeline.max_memory_bytes or runner.max_memory_bytes,
            pipeline.max_cpu_seconds or runner.max_cpu_seconds,
            pipeline.max_file_bytes or runner.max_file_bytes,
            pipeline.max_open_files or runner.max_open_files,
        )

    def impose(self, pid: int) -> None:
        """Have them hold for a child that has just been started, and for all that it has started or will start.

        From outside, since nothing may run between fork and exec in a process with threads. A shell has started others
        by then, so these are looked for: what is not there when its parent has its limits, inherits them.
        """
        to_do = [pid]
        for _ in range(EARLY_MOST):
            if not to_do:
                return
            one = to_do.pop()
            try:
                self._impose(one)
                to_do += _started_by(one)
            except (ProcessLookupError, FileNotFoundError):  # it has ended already
                continue
            except OSError as error:  # such as for a program that runs as another user
                log.warning("cannot limit a child", pid=one, error=str(error))

    def _impose(self, pid: int) -> None:
        # RLIMIT_DATA and not RLIMIT_AS: runtimes with a heap of their own reserve addresses by the terabyte.
        cpu = max(1, round(self.cpu))
        limits = {
            resource.RLIMIT_DATA: (self.memory, self.memory),
            resource.RLIMIT_CPU: (cpu, cpu + CPU_GRACE),
            resource.RLIMIT_FSIZE: (self.file, self.file),
            resource.RLIMIT_NOFILE: (self.open_files, self.open_files),
            resource.RLIMIT_CORE: (0, 0),
        }
        for kind, (soft, hard) in limits.items():
            most = resource.prlimit(pid, kind)[1]
            if most != resource.RLIM_INFINITY:
                soft, hard = min(soft, most), min(hard, most)
            resource.prlimit(pid, kind, (soft, hard))
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(FIRST_TO_GO))

    def told(self, status: int, stderr: bytes) -> str:
        """What an exit status other than 0, negative for a signal, says, as the end of a sentence about the child."""
        number = -status if status < 0 else status - 128  # as a shell tells of what it has run
        if number == signal.SIGXCPU:
            return f"used more than {seconds_text(self.cpu)} of processor time, the most that it may"
        if number == signal.SIGXFSZ:
            return f"wrote a file of more than {size_text(self.file)}, the largest that it may"
        end = f"was ended by {_signal_name(-status)}" if status < 0 else f"failed with exit status {status}"
        if number in _FATAL or _COMPLAINT.search(stderr):
            return f"{end}, perhaps for want of memory: it may have {size_text(self.memory)}"
        words = last_words(stderr)
        return f"{end}: {words}" if words else end


def _started_by(pid: int) -> list[int]:
    """The children of a process."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for text in lists for child in text.split()]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"
