"""The programs of the table in docs/commands.md: how to prepare each one, and its commands."""

import os
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from PIL import Image

MEBIBYTE = 1024 * 1024
DOWNLOAD = 3 * MEBIBYTE
SECONDS = 2.4  # of a download
WHEEL = "slow-1.0-py3-none-any.whl"


class Program(NamedTuple):
    """A row of the table. `{url}` in a command is the address of a slow web server.

    `flagged`: the command with a flag that makes the program print its progress. `transcript`: what is read instead of
    a run, because the program is not installed, or because a run would change the system. `varies`: its output differs
    from run to run beyond numbers and bars ("flag": with the flag).
    """

    name: str
    command: str
    flagged: str = ""
    prepare: Callable[[Path], None] | None = None
    transcript: str = ""
    varies: str = ""
    unseen: bool = False  # it prints no progress at all

    @property
    def words(self) -> list[str]:
        return self.command.split()


def shell(script: str) -> Callable[[Path], None]:
    def prepare(directory: Path) -> None:
        environment = {**os.environ, **ENVIRONMENT, "HOME": str(directory)}
        subprocess.run(["sh", "-ec", script], cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)

    return prepare


def files(directory: Path, number: int = 20, size: int = MEBIBYTE) -> None:
    (directory / "tree").mkdir()
    for index in range(number):
        (directory / "tree" / f"file{index}").write_bytes(os.urandom(size))


def random_bytes(mebibytes: int) -> Callable[[Path], None]:
    def prepare(directory: Path) -> None:
        (directory / "big").write_bytes(os.urandom(mebibytes * MEBIBYTE))

    return prepare


big = random_bytes(20)


def image(directory: Path) -> None:
    with (directory / "big").open("wb") as file:
        file.truncate(64 * MEBIBYTE)
        file.write(os.urandom(16 * MEBIBYTE))


def many_files(directory: Path) -> None:
    files(directory, 400, 4000)
    shell("git init -q && git add tree && git -c user.name=a -c user.email=a@b -c gc.auto=0 commit -qm a")(directory)


def then(first: Callable[[Path], None], script: str) -> Callable[[Path], None]:
    def prepare(directory: Path) -> None:
        first(directory)
        shell(script)(directory)

    return prepare


def ninja_build(directory: Path) -> None:
    rules = "rule slow\n  command = sleep 0.1; touch $out\n"
    (directory / "build.ninja").write_text(rules + "".join(f"build out{n}: slow\n" for n in range(20)))


def cmake_build(directory: Path) -> None:
    targets = "".join(
        f"add_custom_command(OUTPUT o{n} COMMAND sleep 0.1 COMMAND ${{CMAKE_COMMAND}} -E touch o{n})\n"
        for n in range(15)
    )
    tests = "".join(f"add_test(NAME t{n} COMMAND sleep 0.1)\n" for n in range(15))
    outputs = " ".join(f"o{n}" for n in range(15))
    (directory / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(a NONE)\nenable_testing()\n"
        f"{targets}{tests}add_custom_target(all_of_it ALL DEPENDS {outputs})\n"
    )
    shell("cmake -S . -B build -G 'Unix Makefiles'")(directory)


def python_tests(directory: Path) -> None:
    body = "import time, pytest\n@pytest.mark.parametrize('n', range(160))\ndef test_a(n): time.sleep(0.01)\n"
    (directory / "test_a.py").write_text(body)


def script(name: str, text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_text(text) and None


def wheel(directory: Path) -> None:
    (directory / "index").mkdir()
    with zipfile.ZipFile(directory / "index" / WHEEL, "w") as archive:
        archive.writestr("slow/data", os.urandom(DOWNLOAD))
        archive.writestr("slow-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
        archive.writestr("slow-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("slow-1.0.dist-info/RECORD", "")


def pages(directory: Path) -> None:
    page = Image.new("L", (600, 800), 255)
    page.paste(0, (50, 50, 300, 100))
    page.save(directory / "pages.tiff", save_all=True, append_images=[page] * 3)
    page.save(directory / "pages.pdf", save_all=True, append_images=[page])


TQDM = "import time, tqdm\nfor n in tqdm.tqdm(range(30), desc='Pages'): time.sleep(0.05)\n"
RICH = "import time, rich.progress\nfor n in rich.progress.track(range(30), 'Working'): time.sleep(0.05)\n"
ALIVE = (
    "import time, alive_progress\nwith alive_progress.alive_bar(30) as bar:\n    for n in range(30):\n"
    "        time.sleep(0.05)\n        bar()\n"
)

ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "TERM": "xterm-256color",
    "COLUMNS": "120",
    "BORG_REPO": "repo",
    "BORG_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
    "RESTIC_PASSWORD": "a",
    "RESTIC_REPOSITORY": "repo",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "no_proxy": "*",
}
film = shell("ffmpeg -v error -f lavfi -i testsrc=duration=3:size=640x480:rate=25 in.mp4")

PROGRAMS = [
    Program("7z", "7z a a.7z b", transcript="7z-25.01"),
    Program("alive-progress", "python3 bar.py", prepare=script("bar.py", ALIVE)),
    Program("apt-get", "apt-get install hello", transcript="apt-get-3.0"),
    Program("aria2c", "aria2c --summary-interval=1 {url}/file"),
    Program("borg create", "borg create ::a tree", "borg create --progress --log-json ::a tree",
            then(files, "borg init -e none")),
    Program("borg extract", "borg extract ::a", "borg extract --progress ::a",
            then(files, "borg init -e none && borg create ::a tree && rm -r tree")),
    Program("cargo", "cargo build", transcript="cargo-pipe-1.95"),
    Program("cmake --build", "cmake --build build", prepare=cmake_build),
    Program("ctest", "ctest --test-dir build", prepare=cmake_build),
    Program("curl", "curl -o copy {url}/file", "curl -# -o copy {url}/file"),
    Program("curl --parallel", "curl --parallel -o a {url}/file -o b {url}/file"),
    Program("dd", "dd if=big of=copy bs=64k oflag=dsync", "dd if=big of=copy bs=64k oflag=dsync status=progress", big),
    Program("ddrescue", "ddrescue big copy", transcript="ddrescue-1.29"),
    Program("docker buildx build", "docker buildx build .", "docker buildx build --progress=rawjson .",
            transcript="buildx-rawjson"),
    Program("e2fsck", "e2fsck -f -n image", "e2fsck -f -n -C 0 image",
            then(many_files, "truncate -s 64M image && mke2fs -q -F -d tree image")),
    Program("ffmpeg", "ffmpeg -y -i in.mp4 -vf scale=1280:960 out.mp4",
            "ffmpeg -y -progress pipe:1 -nostats -i in.mp4 -vf scale=1280:960 out.mp4", film),
    Program("git clone", "git clone file://{dir} copy", "git clone --progress file://{dir} copy", many_files,
            varies="flag"),
    Program("git gc", "git gc", prepare=many_files),
    Program("gpg", "gpg --batch --yes --passphrase a --symmetric big", prepare=big),
    Program("HandBrakeCLI", "HandBrakeCLI -i a -o b", transcript="handbrake-1.9.2"),
    Program("make", "make -C build", prepare=cmake_build),
    Program("meson test", "meson test", transcript="meson-1.7"),
    Program("mke2fs", "mke2fs a", transcript="mke2fs-1.47"),
    Program("mkvmerge", "mkvmerge -o a b", transcript="mkvmerge-92"),
    Program("mksquashfs", "mksquashfs a b", transcript="mksquashfs-4.6"),
    Program("ninja", "ninja -j1", prepare=ninja_build),
    Program("npm", "npm pack", prepare=shell("npm init -y >/dev/null && head -c 3000000 /dev/urandom >data"),
            unseen=True, varies="always"),
    Program("ocrmypdf", "ocrmypdf --output-type pdf pages.pdf out.pdf", prepare=pages),
    Program("partclone", "partclone.ext4 -c -s a -o b", transcript="partclone-0.3.36"),
    Program("pip", "pip download --no-deps --no-cache-dir {url}/" + WHEEL,
            "pip download --no-deps --no-cache-dir --progress-bar raw {url}/" + WHEEL, wheel),
    Program("pv", "pv {limited} -o copy big", "pv {limited} -n -o copy big", big),
    Program("pytest", "pytest -q -p no:cacheprovider test_a.py",
            "pytest -q -p no:cacheprovider -o console_output_style=count test_a.py", python_tests),
    Program("qemu-img", "qemu-img convert -O qcow2 -c big copy", "qemu-img convert -p -O qcow2 -c big copy", image),
    Program("rclone", "rclone copy --bwlimit 10M --config c tree copy",
            "rclone copy --bwlimit 10M --config c --use-json-log --stats 1s --stats-log-level NOTICE tree copy", files),
    Program("restic", "restic backup tree", "restic backup --json tree", then(files, "restic init"), varies="always"),
    Program("rich", "python3 bar.py", prepare=script("bar.py", RICH)),
    Program("rsync", "rsync -a --bwlimit=20M tree/ copy", "rsync -a --bwlimit=20M --info=progress2 tree/ copy", files),
    Program("rsync -P", "rsync -aP --bwlimit=20M tree/ copy", prepare=files),
    Program("shred", "shred big", "shred -v -n 3 big", prepare=shell("truncate -s 64M big")),
    Program("tar c", "tar cf a.tar tree", prepare=lambda d: files(d, 60)),
    Program("tar x", "tar xf a.tar", prepare=then(lambda d: files(d, 60), "tar cf a.tar tree && rm -r tree")),
    Program("tesseract", "tesseract pages.tiff out", prepare=pages),
    Program("tqdm", "python3 bar.py", prepare=script("bar.py", TQDM)),
    Program("wget", "wget -O copy {url}/file",
            "wget -q --show-progress --progress=bar:force:noscroll -O copy {url}/file", varies="always"),
    Program("xorriso", "xorriso -outdev a", transcript="xorriso-1.5.6"),
    Program("xz", "xz -k -9e -T1 big", prepare=random_bytes(16)),
    Program("yt-dlp", "yt-dlp {url}/video.mp4", "yt-dlp --newline {url}/video.mp4"),
    Program("zstd", "zstd -15 -f big", "zstd -15 -f --progress big", big),
]  # fmt: skip


class _Slow(BaseHTTPRequestHandler):
    """Answer with a file of the working directory, or with zeros, in some seconds."""

    protocol_version = "HTTP/1.1"
    directory = Path()
    seconds = SECONDS

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        content = self._head()
        part = len(content) // 48 + 1
        for start in range(0, len(content), part):
            self.wfile.write(content[start : start + part])
            time.sleep(self.seconds / 48)

    def _head(self) -> bytes:
        path = self.directory / "index" / self.path.lstrip("/")
        content = path.read_bytes() if path.is_file() else bytes(DOWNLOAD)
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4" if self.path.endswith(".mp4") else "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def slow_server(directory: Path, seconds: float = SECONDS) -> Iterator[str]:
    """Run a web server on the loopback interface, and give its address."""
    handler = type("Handler", (_Slow,), {"directory": directory, "seconds": seconds})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client may leave early
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
