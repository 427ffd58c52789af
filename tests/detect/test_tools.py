"""Real tools: what progressd adds to their commands changes neither their output nor their exit status.

`make tools` installs and runs them. A tool that is not installed is skipped.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from progressd.detect.detector import DESCRIPTOR, STDERR, STDOUT, Detector
from progressd.detect.output_filter import OutputFilter
from progressd.detect.plan import Plan, plan
from progressd.detect.preset_loader import Presets
from support.waiting import PATIENCE

pytestmark = pytest.mark.tools

CHANGING = re.compile(rb"[\d.,]+ ?(?:s\b|[kKMG]?i?B/s)|\d\d:\d\d:\d\d(?:\.\d+)?|0x[0-9a-f]+")  # times and rates
MEBIBYTE = 1024 * 1024


class Run:
    """One run of a command. `outputs`: what the user sees, by stream."""

    def __init__(self, planned: Plan, directory: Path) -> None:
        reading, writing = os.pipe()
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "GNUPGHOME": str(directory), **planned.environment}
        process = subprocess.Popen(
            planned.arguments(writing), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=directory, env=environment, pass_fds=[writing] if planned.progress_fd else [],
        )  # fmt: skip
        os.close(writing)
        assert process.stdout is not None
        assert process.stderr is not None
        self.detector = Detector(planned)
        self.percents = list[float]()
        self.outputs = {STDOUT: b"", STDERR: b""}
        self._planned = planned
        self._lock = threading.Lock()
        streams = {STDOUT: process.stdout.fileno(), STDERR: process.stderr.fileno(), DESCRIPTOR: reading}
        readers = [threading.Thread(target=self._read, args=item) for item in streams.items()]
        for reader in readers:
            reader.start()
        self.status = process.wait(PATIENCE)
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()
        os.close(reading)

    def _read(self, stream: int, descriptor: int) -> None:
        hidden = OutputFilter(self._planned) if self._planned.hides and stream != DESCRIPTOR else None
        while chunk := os.read(descriptor, 65536):
            with self._lock:
                found = self.detector.feed(stream, chunk)
                self.percents += [one.percent for one in found if one.percent is not None]
            if stream != DESCRIPTOR:
                self.outputs[stream] += hidden.feed(chunk) if hidden else chunk
        with self._lock:
            found = self.detector.quiet(stream)
            self.percents += [one.percent for one in found if one.percent is not None]
        if hidden:
            self.outputs[stream] += hidden.end()


def files(directory: Path, number: int = 20, size: int = MEBIBYTE) -> None:
    (directory / "tree").mkdir()
    for index in range(number):
        (directory / "tree" / f"file{index}").write_bytes(os.urandom(size))
    (directory / "big").write_bytes(os.urandom(number * size))


def nothing(_: Path) -> None:
    pass


def repository(directory: Path) -> None:
    files(directory, 50, 20_000)
    script = "git init -q && git add tree && git -c user.name=a -c user.email=a@b commit -qm a"
    subprocess.run(["sh", "-c", script], cwd=directory, check=True)


def extended(directory: Path) -> None:
    subprocess.run(["mke2fs", "-q", "-F", "image", "64M"], cwd=directory, check=True)


def crate(directory: Path) -> None:
    (directory / "src").mkdir()
    (directory / "src" / "main.rs").write_text("fn main() {}")
    (directory / "Cargo.toml").write_text('[package]\nname = "a"\nversion = "0.1.0"\nedition = "2021"\n')


def film(directory: Path) -> None:
    make = "ffmpeg -v error -f lavfi -i testsrc=duration=3:size=320x240:rate=25 in.mp4"
    subprocess.run(make.split(), cwd=directory, check=True)


def archive(directory: Path) -> None:
    files(directory, 40)
    subprocess.run(["tar", "cf", "a.tar", "tree", "big"], cwd=directory, check=True)


TOOLS: list[tuple[str, Callable[[Path], None]]] = [
    ("rsync -a --bwlimit=50M tree/ copy", files),
    ("rsync -a tree/ no/such/copy", files),
    ("dd if=big of=copy bs=64k oflag=dsync", files),
    ("tar cf a.tar tree big", files),
    ("tar cvzf a.tgz tree", files),
    ("tar xvf a.tar --one-top-level=x", archive),
    ("tar tf a.tar", archive),
    ("git clone file://. copy", repository),
    ("git fetch file://. HEAD", repository),
    ("git clone no/such", nothing),
    ("zstd -9 -f big", files),
    ("zstd -f no-such", nothing),
    ("qemu-img convert -O qcow2 big copy.qcow2", files),
    ("rclone copy --config rclone.conf tree copy", files),
    ("ffmpeg -y -v error -i in.mp4 -vf scale=640:480 out.mp4", film),
    ("ffmpeg -hide_banner -i no-such out.mp4", nothing),
    ("gpg --batch --yes --passphrase a --symmetric big", files),
    ("e2fsck -f -n image", extended),
    ("cargo build --offline", crate),
    ("apt-get -s install hello", nothing),
]


@pytest.mark.parametrize(("command", "prepare"), TOOLS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_addition_is_not_visible(tmp_path: Path, command: str, prepare: Callable[[Path], None]) -> None:
    words = [word.replace("file://.", f"file://{tmp_path}/1") for word in command.split()]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    runs = []
    for number, adapt in enumerate((False, True), 1):
        directory = tmp_path / str(number)
        directory.mkdir()
        prepare(directory)
        planned = plan([word.replace(f"{tmp_path}/1", str(directory)) for word in words], Presets(), adapt=adapt)
        assert bool(planned.added) == adapt
        runs.append(Run(planned, directory))
    plain, added = runs
    assert added.status == plain.status
    for stream in (STDOUT, STDERR):
        seen, expected = (
            CHANGING.sub(b"0", run.outputs[stream]).replace(f"{tmp_path}/{number}".encode(), b"")
            for number, run in ((2, added), (1, plain))
        )
        assert seen == expected
    assert added.percents == sorted(added.percents)


def test_the_progress_of_python_is_found(tmp_path: Path) -> None:
    script = "for n in range(1, 101): print(f'\\r{n}% done', end='', flush=True)"
    run = Run(plan([sys.executable, "-c", script], Presets()), tmp_path)
    assert run.percents[-1] == 100
