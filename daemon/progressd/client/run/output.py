"""Pass on the output of a command, byte for byte, and hand a part of it to the detection of progress.

A thread reads each stream: a write to a terminal or a pipe of the user may block. These must not be made non-blocking,
because other programs share them.
"""

import math
import os
import select
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from progressd.client.run.launch import Command
from progressd.client.run.plan import Detection
from progressd.core.events import LogStream, ReportedProgress
from progressd.system.fs import write_all

if TYPE_CHECKING:
    from progressd.detect.output_filter import OutputFilter
    from progressd.system.output_buffer import OutputBuffer

PIPE_TIMEOUT: Final = 1.0  # seconds to wait for other processes with the stream, after the exit of the command
MAX_PIPE_BYTES: Final = 1024 * 1024  # bytes to read after the exit: the capacity of a pipe
CHUNK: Final = 65536  # bytes; larger chunks are slower, because they leave the cache of the processor
QUIET: Final = 0.2  # seconds without output, after which an unfinished line is complete
SEARCHED: Final = 256 * 1024  # bytes a second that are searched for progress
SAMPLE: Final = 4096  # bytes at the end of each chunk that are searched if the output is faster
DRAIN: Final = 1.0  # seconds to pass on the output of a stopped command
STDOUT: Final = 1
STDERR: Final = 2
LOGGED: Final = {STDOUT: LogStream.STDOUT, STDERR: LogStream.STDERR}
DESCRIPTOR: Final = 3  # the detector's number for a descriptor that only carries progress
ESTIMATE: Final = "the position in the file that it reads (estimate)"
NOTIFICATIONS: Final = "sd_notify"
MAX_TAIL: Final = 8192  # last bytes to keep


class OutputPump(threading.Thread):
    """Pass on one stream: read from `source`, write to `to`; None: write nothing.

    `on_data` gets the output to search, and `on_quiet` is called QUIET seconds after the last byte. `on_error` receives
    the error of a failed write, except a broken pipe, which the command notices at its next write. `output_filter`
    removes the lines that progressd's options add to the output. `log` receives the rest, and b"" while the stream is
    silent.
    """

    def __init__(
        self,
        source: int,
        to: int | None,
        on_data: Callable[[bytes], None],
        on_quiet: Callable[[], None],
        on_error: Callable[[OSError], None],
        *,
        closes: bool = True,
        output_filter: "OutputFilter | None" = None,
        log: Callable[[bytes], None] | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self.tail = b""  # last bytes of the output
        self.idle = False  # all output has been passed on, for now
        self._source = source
        self._to = to
        self._on_data = on_data
        self._on_quiet = on_quiet
        self._on_error = on_error
        self._closes = closes
        self._filter = output_filter
        self._log = log
        self._ended = False  # the command has exited
        self._seconds_left = PIPE_TIMEOUT
        self._bytes_left = MAX_PIPE_BYTES
        self._budget = float(SEARCHED)
        self._budget_at = time.monotonic()
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(source, select.POLLIN)
        self._poll.register(self._waker, select.POLLIN)
        os.set_blocking(source, False)

    def has_ended(self) -> None:
        """Note that the command has exited. The thread ends once no other process has the stream, or soon after."""
        self._ended = True
        os.eventfd_write(self._waker, 1)

    def close(self) -> None:
        """Wait for the end of the thread, and free its descriptor. The stream stays open for other processes."""
        self.join()
        os.close(self._waker)

    def run(self) -> None:
        """Pass on the output to its end."""
        buffer = bytearray(CHUNK)
        while (size := self._receive(buffer)) > 0:
            if self._ended:
                self._bytes_left -= size
            chunk = memoryview(buffer)[:size]
            if not self._write(chunk if self._filter is None else self._filter.feed(bytes(chunk))):
                break
            self._search(chunk)
        self._on_quiet()
        if self._filter is not None:
            self._write(self._filter.end())
        self.idle = True

    def _receive(self, buffer: bytearray) -> int:
        """Return the number of bytes read; 0 at the end, or if only other processes can still write."""
        quiet = False
        while self._bytes_left > 0:
            try:
                return os.readv(self._source, [buffer])
            except BlockingIOError:
                pass
            except OSError:  # EIO: all processes have closed the terminal
                return 0
            if self._ended and self._seconds_left <= 0:
                return 0
            seconds = self._seconds_left if self._ended else None if quiet else QUIET
            self.idle = True
            began = time.monotonic()
            ready = self._poll.poll(None if seconds is None else seconds * 1000)
            self.idle = False
            if self._ended:
                self._seconds_left -= time.monotonic() - began
            if not ready and not quiet:
                quiet = True
                self._on_quiet()
                if self._filter is not None:
                    self._write(self._filter.quiet())
                if self._log is not None:
                    self._log(b"")
            if any(descriptor == self._waker for descriptor, _ in ready):
                os.eventfd_read(self._waker)
        return 0

    def _write(self, chunk: memoryview | bytes) -> bool:
        """Write a chunk. Return False if this closes the source; the command's next write then fails."""
        if self._log is not None and chunk:
            self._log(bytes(chunk))
        if self._to is None:
            return True
        try:
            write_all(self._to, chunk)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self._on_error(error)
            if not self._closes:  # a terminal: the command writes on, and nobody sees it
                self._to = None
                return True
            self._poll.unregister(self._source)
            os.close(self._source)
            return False
        return True

    def _search(self, chunk: memoryview) -> None:
        """Keep the last bytes, and pass on as many as may be searched: detection must not slow the output down."""
        size = len(chunk)
        self.tail = (self.tail + bytes(chunk[-MAX_TAIL:]))[-MAX_TAIL:]
        now = time.monotonic()
        self._budget = min(SEARCHED, self._budget + (now - self._budget_at) * SEARCHED)
        self._budget_at = now
        if size <= self._budget:
            self._budget -= size
            self._on_data(bytes(chunk))
        else:
            sample = bytes(chunk[-SAMPLE:])
            if self._budget >= len(sample):
                self._budget -= len(sample)
                self._on_data(b"\n" + sample)


class FrameAges:
    """The time since when the unfinished frame of each stream may show progress."""

    def __init__(self) -> None:
        self._begins = dict[int, float]()

    def age(self, stream: int, chunk: bytes, now: float) -> float:
        """Record output. Return the age in seconds of the oldest frame that ends in it."""
        begin = self._begins.setdefault(stream, now)
        if b"\r" in chunk or b"\n" in chunk:
            self._begins[stream] = now
        return now - begin

    def look(self, stream: int) -> float:
        """Record that the unfinished frame was searched after QUIET seconds. Return the age of the frame."""
        self._begins.pop(stream, None)
        return QUIET


class Outputs:
    """All streams of a command, and the newest progress in them. `on_error`: see OutputPump."""

    def __init__(
        self,
        command: Command,
        detection: Detection,
        on_error: Callable[[OSError], None],
        log: "OutputBuffer | None" = None,
    ) -> None:
        self.on_progress: Callable[[], None] = lambda: None  # called in a thread
        self._detector = detection.detector
        self.estimates = detection.estimates
        self._estimated = False
        self._reported = False  # the command reports its progress itself
        self._progress: ReportedProgress | None = None  # not taken yet
        self._ages = FrameAges()
        self._written_at = math.inf  # monotonic time of the output with the progress that was not taken yet
        self._lock = threading.Lock()
        self._pumps = {
            stream: OutputPump(
                source,
                stream if stream in (STDOUT, STDERR) else None,
                partial(self._search, stream),
                partial(self._look, stream),
                on_error,
                closes=source != command.master,
                output_filter=detection.new_filter() if detection.new_filter and stream in (STDOUT, STDERR) else None,
                log=partial(log.put, LOGGED[stream]) if log is not None and stream in LOGGED else None,
            )
            for stream, source in command.sources.items()
        }
        for pump in self._pumps.values():
            pump.start()

    @property
    def source(self) -> str:
        """Return the source of the progress, such as "rsync"; "" while there is none."""
        if self._reported:
            return NOTIFICATIONS
        return self._detector.source or (ESTIMATE if self._estimated else "")

    @property
    def has_found(self) -> bool:
        """Return whether the command or its output has shown progress."""
        return self._reported or bool(self._detector.source)

    def note_report(self, progress: ReportedProgress) -> None:
        """Take progress that the command reports itself. Its output is no longer a source."""
        with self._lock:
            self._reported = True
            self._set(progress, 0.0)
        self.on_progress()

    def note_estimate(self, estimate: ReportedProgress) -> None:
        """Take an estimate, unless the output has shown progress."""
        with self._lock:
            if not self.has_found:
                self._estimated = True
                self._note([estimate], 0.0)

    @property
    def has_progress(self) -> bool:
        """Return whether there is progress to take."""
        return self._progress is not None

    def take_progress(self) -> ReportedProgress | None:
        """Return the newest progress once."""
        with self._lock:
            progress, self._progress, self._written_at = self._progress, None, math.inf
            if progress is not None and progress.unit is None and self._estimated and self.has_found:
                progress = replace(progress, unit="")  # the estimate was in bytes
        return progress

    @property
    def progress_age(self) -> float:
        """Return for how many seconds the command may have shown more progress than was taken."""
        return max(time.monotonic() - self._written_at, 0.0)

    def last_errors(self) -> bytes:
        """Return the end of standard error, or of the terminal that it shares with standard output."""
        pump = self._pumps.get(STDERR) or self._pumps.get(STDOUT)
        return pump.tail if pump is not None else b""

    def drain(self) -> None:
        """Wait until the output of a stopped command has been passed on. Blocks."""
        until = time.monotonic() + DRAIN
        while time.monotonic() < until and not all(pump.idle for pump in self._pumps.values()):
            time.sleep(0.01)

    def finish(self) -> None:
        """Pass on the rest after the exit of the command. Blocks."""
        for pump in self._pumps.values():
            pump.has_ended()
        for pump in self._pumps.values():
            pump.close()

    def _search(self, stream: int, data: bytes) -> None:
        stream = min(stream, DESCRIPTOR)
        with self._lock:
            age = self._ages.age(stream, data, time.monotonic())
            self._note(self._detector.feed(stream, data), age)

    def _look(self, stream: int) -> None:
        stream = min(stream, DESCRIPTOR)
        with self._lock:
            self._note(self._detector.quiet(stream), self._ages.look(stream))

    def _note(self, found: list[ReportedProgress], age: float) -> None:
        if found and not self._reported:
            self._set(found[-1], age)
            self.on_progress()

    def _set(self, progress: ReportedProgress, age: float) -> None:
        self._progress = progress
        self._written_at = min(self._written_at, time.monotonic() - age)
