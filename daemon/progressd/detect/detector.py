"""Find the progress of a program in what it writes.

The sources, best first: OSC 9;4, the preset of the program, lines of JSON with known keys, general patterns. A better
source replaces a worse one as soon as it appears.
"""

from collections.abc import Iterator
from functools import cache
from typing import Final

from progressd.core.events import ReportedProgress
from progressd.core.progress_pattern import Pattern, ProgressPattern
from progressd.detect.frames import Frame, FrameSplitter
from progressd.detect.general import GeneralPatterns
from progressd.detect.plan import Plan
from progressd.detect.presets import JsonRule, Preset, Presets, read_json, reading_of
from progressd.detect.reading import Reading
from progressd.detect.track import Track

STDOUT: Final = 1
STDERR: Final = 2
DESCRIPTOR: Final = 3  # the stream of the descriptor that only progressd reads

LARGE: Final = 2048  # bytes of a chunk that a program without a pause writes
PATIENCE: Final = 16  # large chunks in a row that are looked at; of those that follow, one in SAMPLED
SAMPLED: Final = 16

ANYWHERE: Final = ("git", "rsync", "yt-dlp")  # presets for the output of any program, such as a script

_OSC: Final = Pattern(r"\]9;4;(?P<state>\d)(?:;(?P<percent>\d{1,3}))?")
_GENERAL, _JSON, _PRESET, _SEQUENCE = 1, 2, 3, 4  # the ranks of the sources
_REMOVED, _ERROR = "0", "2"


class _Stream:
    """The frames of one stream. `skipped`: the last chunk that was not looked at, in a flood of large chunks."""

    def __init__(self) -> None:
        self.frames = FrameSplitter()
        self.flood = 0
        self.skipped = b""

    def take(self, data: bytes) -> list[Frame]:
        """Return the frames of the skipped chunk and of this one."""
        frames = self.frames.feed(self.skipped) if self.skipped else []
        self.skipped = b""
        return frames + self.frames.feed(data)


class Detector:
    """Search the output of one run. Feed it each chunk, and call `quiet` when a stream has been silent for 200 ms."""

    def __init__(self, plan: Plan, pattern: ProgressPattern | None = None) -> None:
        """Create a detector. `pattern`: the user's own, which replaces every other source."""
        self._plan = plan
        self._preset = plan.preset
        self._pattern = pattern
        self._streams = dict[int, _Stream]()
        self._rank = 0
        self._general = GeneralPatterns()
        self._track = self._new_track()
        self._last: ReportedProgress | None = None
        self._on = plan.enabled or pattern is not None
        self.source = ""  # where the progress was found, for people: "rsync", "OSC 9;4", "tqdm"; "" if nowhere yet

    @property
    def found(self) -> Reading:
        """Return everything known about the progress: including the rate, the unit, the phase and the time left."""
        return self._track.last

    def feed(self, stream: int, data: bytes) -> list[ReportedProgress]:
        """Return the progress in the frames that end in this chunk."""
        return [found for _, found in self.frames(stream, data) if found is not None]

    def frames(self, stream: int, data: bytes) -> Iterator[tuple[Frame, ReportedProgress | None]]:
        """Yield the frames that end in this chunk, each with its progress if it is new."""
        if not self._on:
            return
        output = self._streams.get(stream)
        if output is None:
            output = self._streams[stream] = _Stream()
        output.flood = output.flood + 1 if len(data) >= LARGE else 0
        if output.flood > PATIENCE and output.flood % SAMPLED:
            output.skipped = data
            output.frames.forget()
            return
        for frame in output.take(data):
            yield frame, self._look(stream, frame)

    def quiet(self, stream: int) -> list[ReportedProgress]:
        """Return the progress in the unfinished frame of a stream. Call this also at the end of the stream."""
        output = self._streams.get(stream)
        if output is None:
            return []
        output.flood = 0
        frames = output.take(b"")
        if (last := output.frames.unfinished()) is not None:
            frames.append(last)
        return [found for frame in frames if (found := self._look(stream, frame)) is not None]

    def _look(self, stream: int, frame: Frame) -> ReportedProgress | None:
        """Return the progress in a frame, if it is new."""
        found = self._search(stream, frame)
        if found is None or found == self._last:
            return None
        self._last = found
        return found

    def _search(self, stream: int, frame: Frame) -> ReportedProgress | None:
        if self._pattern is not None:
            groups = None if frame.osc else self._pattern.groups(frame.plain)
            return None if groups is None else self._take(_PRESET, "pattern", reading_of(groups))
        if frame.osc:
            return self._take_sequence(frame.text)
        text = frame.plain
        if self._preset is None and b"%" in text:
            self._preset = _preset_of(text)
        if self._preset is not None and (reading := self._preset.read(text, stream == DESCRIPTOR)) is not None:
            return self._take(_PRESET, self._preset.name, reading)
        if self._rank <= _JSON and text.startswith(b"{"):
            reading = read_json(text, _json_rules())
            return None if reading is None else self._take(_JSON, "JSON lines", reading)
        if (
            self._rank <= _GENERAL
            and not self._plan.adaptation
            and (reading := self._general.read(text, frame.redraw)) is not None
        ):
            return self._take(_GENERAL, self._general.source, reading)
        return None

    def _take_sequence(self, text: bytes) -> ReportedProgress | None:
        groups = _OSC.groups(text)
        if groups is None or groups["state"] in (_REMOVED, _ERROR) or "percent" not in groups:
            return None
        return self._take(_SEQUENCE, "OSC 9;4", reading_of(groups))

    def _take(self, rank: int, source: str, reading: Reading) -> ReportedProgress | None:
        """Take a reading if no better source was found. A worse source may still name the step."""
        if rank > self._rank and reading.moves:
            if self._rank or self._preset is not self._plan.preset:
                self._track = self._new_track()
            self._rank = rank
        if rank == self._rank and reading.moves:
            self.source = source
        if rank < self._rank or not reading.moves:
            self._track.note(reading)
            return None
        return self._track.move(reading)

    def _new_track(self) -> Track:
        preset = self._preset
        if self._pattern is not None or preset is None:
            return Track({})
        many = preset.many and not self._plan.single
        return Track(preset.phases, many, self._plan.total, preset.labels)


@cache
def _presets_anywhere() -> list[Preset]:
    presets = Presets()
    return [preset for name in ANYWHERE if (preset := presets.find(name)) is not None]


def _preset_of(text: bytes) -> Preset | None:
    """Return the preset of the program that has written a frame, if no other program writes such a frame."""
    for preset in _presets_anywhere():
        reading = preset.read(text, False)
        if reading is not None and reading.moves and (not preset.phases or preset.knows(reading.phase)):
            return preset
    return None


@cache
def _json_rules() -> tuple[JsonRule, ...]:
    preset = Presets().find("json")
    return preset.json if preset else ()
