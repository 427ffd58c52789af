"""The output of real tools with its times, which `tests/transcripts/record.py` recorded."""

from pathlib import Path
from typing import NamedTuple

from progressd.detect.detector import DESCRIPTOR, STDERR, STDOUT

TRANSCRIPTS = Path(__file__).parent.parent / "transcripts"
STREAMS = {"O": STDOUT, "E": STDERR, "P": DESCRIPTOR}


class Case(NamedTuple):
    """A transcript, and what must be found in it. `last`: the least percentage at the end, None without a total."""

    name: str
    command: str
    source: str
    last: float | None = 100
    updates: int = 3


CASES = [
    Case("7z-25.01", "7z a a.7z b", "7z", 99, 30),
    Case("alive-progress-3", "python a.py", "percentages", 100, 20),
    Case("apt-3.0", "apt install hello", "apt-get", 85, 5),
    Case("apt-get-3.0", "apt-get install hello", "apt-get", 85, 8),
    Case("aria2c-1.37", "aria2c u", "aria2c", 75),
    Case("aria2c-pty-1.37", "aria2c u", "aria2c", 75),
    Case("borg-check-json-1.4", "borg check a", "JSON lines", 100, 6),
    Case("borg-create-1.4", "borg create a", "JSON lines", None, 5),
    Case("borg-extract-1.4", "borg extract a", "borg", 97, 100),
    Case("buildx-rawjson", "docker buildx build --progress=rawjson .", "JSON lines", 80, 6),  # written, not recorded
    Case("cargo-pipe-1.95", "cargo build", "cargo", 75, 4),
    Case("cargo-pty-1.95", "cargo build", "cargo", 75, 4),
    Case("cmake-3.31", "cmake --build b", "cmake", 100, 12),
    Case("ctest-3.31", "ctest", "ctest", 100, 12),
    Case("curl-8.14.1", "curl -O u", "curl", 100, 2),
    Case("curl-bar-8.14.1", "curl -# u", "curl", 100, 15),
    Case("curl-chunked-8.14.1", "curl -O u", "curl", None),
    Case("curl-put-8.14.1", "curl -T a u", "curl", 100, 2),
    Case("curl-parallel-8.14.1", "curl --parallel http://a http://b", "curl-parallel"),
    Case("dd-9.7", "dd of=b", "dd", None),
    Case("ddrescue-1.29", "ddrescue a b", "ddrescue"),
    Case("e2fsck-1.47", "e2fsck -f a", "e2fsck", 100, 30),
    Case("ffmpeg-7.1", "ffmpeg -f lavfi", "ffmpeg", None),
    Case("ffmpeg-t-7.1", "ffmpeg -i a b", "ffmpeg", 99, 10),
    Case("git-2.47.3", "git clone a", "git", 80, 100),
    Case("git-pipe-2.47.3", "git clone a", "git", 80, 100),
    Case("gpg-2.4", "gpg -c a", "gpg"),
    Case("handbrake-1.9.2", "HandBrakeCLI -i a", "HandBrakeCLI", 97, 20),
    Case("make-cmake-3.31", "make", "make", 100, 12),
    Case("meson-1.7", "meson test", "meson", 100, 8),
    Case("meson-pty-1.7", "meson test", "meson", 100, 8),
    Case("mke2fs-1.47", "mke2fs a", "mke2fs", 90),
    Case("mksquashfs-4.6", "mksquashfs a b", "mksquashfs", 100, 30),
    Case("mkvmerge-92", "mkvmerge -o a b", "mkvmerge", 100, 2),
    Case("ninja-1.12", "ninja", "ninja", 100, 12),
    Case("ninja-pty-1.12", "ninja", "ninja", 100, 20),
    Case("ocrmypdf-16", "ocrmypdf a b", "ocrmypdf", 100, 8),
    Case("partclone-0.3.36", "partclone.ext4 -c", "partclone", 100, 2),
    Case("pip-pipe-23.2", "pip download numpy", "pip", 50, 1),
    Case("pip-pty-23.2", "pip download numpy", "pip", 49, 8),
    Case("pip-pty-26", "pip download numpy", "pip", 75, 4),
    Case("pip-raw-26", "pip download --progress-bar raw a", "pip", 50),
    Case("pv-1.9.31", "pv a", "pv"),
    Case("pv-n-1.9.31", "pv -n a", "pv"),
    Case("pytest-9", "pytest", "pytest"),
    Case("pytest-osc-9", "pytest", "OSC 9;4", 95, 20),
    Case("pytest-v-9", "pytest -v", "pytest", 100, 36),
    Case("qemu-img-10", "qemu-img convert a b", "qemu-img", 100, 20),
    Case("rclone-1.60", "rclone copy a b", "rclone"),
    Case("rclone-json-1.60", "rclone copy --use-json-log a b", "JSON lines", 100, 6),
    Case("restic-0.18", "restic backup a", "restic", 100, 10),
    Case("restic-0.18-fps", "restic backup a", "restic", 100, 2),
    Case("restic-json-0.18", "restic backup --json a", "JSON lines", 100, 10),
    Case("rich-15", "python a.py", "percentages", 100, 10),
    Case("rsync-3.5.0", "rsync -a a b", "rsync", 100, 30),
    Case("rsync-P-3.5.0", "rsync -aP a b", "rsync-files", 100, 6),
    Case("shred-9.7", "shred -v a", "shred", 50, 2),
    Case("tar-1.35", "tar cf a b", "tar", None, 2),
    Case("tar-x-1.35", "tar xf a", "tar", None, 2),
    Case("tqdm-4.70", "python a.py", "tqdm", 100, 10),
    Case("tqdm-nested-4.70", "python a.py", "tqdm", 100, 15),
    Case("wget-1.25", "wget u", "wget", 100, 100),
    Case("wget-bar-1.25", "wget u", "wget", 100, 8),
    Case("wget-bar-chunked-1.25", "wget u", "wget", None, 8),
    Case("wget-chunked-1.25", "wget u", "wget", None, 50),
    Case("xorriso-1.5.6", "xorriso -as mkisofs", "xorriso", 31, 1),
    Case("yt-dlp-2026", "yt-dlp u", "yt-dlp", 100, 10),
    Case("yt-dlp-pty-2026", "yt-dlp u", "yt-dlp", 100, 10),
    Case("zstd-1.5.7", "zstd a", "zstd", 75, 2),
    Case("zstd-pty-1.5.7", "zstd a", "zstd", 95),
]


class Chunk(NamedTuple):
    """The output of a single write by a tool. `pause`: the seconds since the chunk before."""

    pause: float
    stream: int
    text: bytes


def chunks_in(name: str) -> list[Chunk]:
    data, at, chunks = (TRANSCRIPTS / f"{name}.typescript").read_bytes(), 0, list[Chunk]()
    for line in (TRANSCRIPTS / f"{name}.timing").read_text().splitlines():
        stream, pause, length = line.split()
        chunks.append(Chunk(float(pause), STREAMS[stream], data[at : at + int(length)]))
        at += int(length)
    assert at == len(data)
    return chunks
