"""Find the progress of a program in its output.

The sources, best first: OSC 9;4, the preset of the program, lines of JSON with known keys, general patterns. A better
source replaces a worse one as soon as it appears.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Final

from progressd.core.events import ReportedProgress
from progressd.core.progress_pattern import Pattern, ProgressPattern
from progressd.detect.frames import Frame, FrameSplitter
from progressd.detect.general import GeneralPatterns
from progressd.detect.plan import Plan
from progressd.detect.preset_loader import Presets
from progressd.detect.reading import Reading
from progressd.detect.rules import JsonRule, Rules, read_json, reading_of
from progressd.detect.track import Track

STDOUT: Final = 1
STDERR: Final = 2
DESCRIPTOR: Final = 3  # the stream of the descriptor that only progressd reads

LARGE: Final = 2048  # bytes of a chunk that a program without a pause writes
PATIENCE: Final = 16  # large chunks in a row that are searched; after these, one in SAMPLED is searched
SAMPLED: Final = 16

ANYWHERE: Final = ("git", "rsync", "yt-dlp")  # presets for the output of any program, such as a script

MAX_BINARY: Final = 20  # frames that are not text, after which a stream is not searched for general patterns

_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_OSC: Final = Pattern(r"\]9;4;(?P<state>\d)(?:;(?P<percent>\d{1,3}))?")
_GENERAL, _JSON, _PRESET, _SEQUENCE = 1, 2, 3, 4  # the ranks of the sources
_REMOVED, _ERROR = "0", "2"


class _Stream:
    """The frames of one stream. `skipped`: the last chunk that was not searched, in a flood of large chunks."""

    def __init__(self) -> None:
        self.frames = FrameSplitter()
        self.flood = 0
        self.skipped = b""
        self._binary = 0  # frames that are no text

    def is_text(self, frame: bytes) -> bool:
        """Return whether a frame and its stream are text: compressed data contains numbers by chance."""
        if self._binary < MAX_BINARY and (_CONTROL.search(frame) is not None or not _is_utf8(frame)):
            self._binary += 1
            return False
        return self._binary < MAX_BINARY

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
        self._rules = Rules(plan.preset) if plan.preset is not None and pattern is None else None
        self._pattern = pattern
        self._streams = dict[int, _Stream]()
        self._rank = 0
        self._general = GeneralPatterns()
        self._track = self._new_track()
        self._last: ReportedProgress | None = None
        self._on = plan.enabled or pattern is not None
        self.source = ""  # the name of the source: "rsync", "OSC 9;4", "tqdm"; "" while there is none

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
        if self._rules is None and b"%" in text:
            self._rules = _rules_of(text)
        if self._rules is not None:
            reading = self._rules.read(text, descriptor=stream == DESCRIPTOR)
            if reading is not None:
                return self._take(_PRESET, self._rules.preset.name, reading)
        if self._rank <= _JSON and text.startswith(b"{"):
            reading = read_json(text, _json_rules())
            return None if reading is None else self._take(_JSON, "JSON lines", reading)
        if (
            self._rank <= _GENERAL
            and not self._plan.adaptation
            and self._streams[stream].is_text(text)
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
            if self._rank or self._plan.preset is None:
                unit, self._track = self._track.unit, self._new_track()
                self._track.unit = unit
            self._rank = rank
        if rank == self._rank and reading.moves:
            self.source = source
        if rank < self._rank or not reading.moves:
            self._track.note(reading)
            return None
        return self._track.move(reading)

    def _new_track(self) -> Track:
        if self._rules is None:
            return Track({})
        preset = self._rules.preset
        return Track(preset.phases, preset.many, self._plan.total, preset.labels, self._plan.items)


def _is_utf8(frame: bytes) -> bool:
    try:
        frame.decode()
    except UnicodeDecodeError as error:
        return error.end == len(frame)  # the last character may be cut off
    return True


@cache
def _rules_anywhere() -> list[Rules]:
    presets = Presets()
    return [Rules(preset) for name in ANYWHERE if (preset := presets.find(name)) is not None]


def _rules_of(text: bytes) -> Rules | None:
    """Return the rules of the program that has written a frame, if no other program writes such a frame."""
    for rules in _rules_anywhere():
        reading = rules.read(text, descriptor=False)
        if reading is not None and reading.moves and (not rules.preset.phases or rules.knows(reading.phase)):
            return rules
    return None


@cache
def _json_rules() -> tuple[JsonRule, ...]:
    preset = Presets().find("json")
    return Rules(preset).json if preset else ()
