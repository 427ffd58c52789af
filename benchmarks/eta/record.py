"""Record real runs: `python -m benchmarks.eta.record` runs tools under `progressd run`, and the PDF pipeline.

A recorded run has the registration of the job, its duration, and its progress with times, as the daemon sent it to a
watcher. Three runs share the machine, and the server of the downloads changes its speed, so that times vary.
"""

import argparse
import gzip
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

RECORDED: Final = Path(__file__).with_name("runs.ndjson.gz")
PROGRESSD: Final = str(Path(sys.executable).with_name("progressd"))
SCAN: Final = next((Path(__file__).parents[2] / "daemon/progressd_pdf/scan").glob("*.pdf"))
LISTENING: Final = "listening on "
WORKERS: Final = 3  # runs at a time
SEED: Final = 12
MB: Final = 1_000_000

Command = Callable[[int, int], Sequence[str]]
"""Return the command for a size, 0 to 2, and a number that no other run has."""

TOOLS: Final[dict[str, Command]] = {
    "tar": lambda size, n: ["tar", "-czf", f"{n}.tgz", f"tree{size}"],
    "gzip": lambda size, n: ["gzip", "-6", "-f", "-k", "-S", f".{n}", f"text{size}"],
    "xz": lambda size, n: ["xz", "-1", "-f", "-k", "-S", f".{n}", f"text{size}"],
    "zstd": lambda size, n: ["zstd", "-12", "-f", f"text{size}", "-o", f"{n}.zst"],
    "7z": lambda size, n: ["7z", "a", "-mx=1", "-bsp1", f"{n}.7z", f"tree{size}"],
    "rsync": lambda size, n: ["rsync", "-a", "--bwlimit=15000", f"tree{size}/", f"copy{n}/"],
    "dd": lambda size, n: ["dd", "if=/dev/urandom", f"of={n}.img", "bs=1M", f"count={(150, 280, 450)[size]}"],
    "curl": lambda size, n: ["curl", "-o", f"{n}.bin", f"http://127.0.0.1:{{port}}/{(50, 90, 150)[size]}.bin"],
    "wget": lambda size, n: ["wget", "-O", f"{n}.bin", f"http://127.0.0.1:{{port}}/{(50, 90, 150)[size]}.bin"],
    "ffmpeg": lambda size, n: ["ffmpeg", "-y", "-i", f"film{size}.mkv", "-c:v", "libx264", f"{n}.mp4"],
    "git": lambda size, n: ["git", "clone", "--no-local", f"repository{size}", f"clone{n}"],
    "ninja": lambda size, n: ["ninja", "-C", f"build{size}-{n}", "-j", "2"],
    "pytest": lambda size, n: ["python", "-u", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"checks{size}"],
    "pip": lambda size, n: [
        "python", "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--progress-bar", "raw", "-d", f"wheel{n}",
        f"http://127.0.0.1:{{port}}/big{size}-1.0-py3-none-any.whl",
    ],
    "tqdm": lambda size, n: ["python", "hash_files.py", f"tree{size}"],
    "pdf": lambda size, n: [PROGRESSD, "submit", "--option", f"dpi={(150, 300, 500)[size]}", str(SCAN), "--watch"],
}  # fmt: skip

HASH_FILES: Final = """
import hashlib, pathlib, sys
from tqdm import tqdm
for file in tqdm(sorted(path for path in pathlib.Path(sys.argv[1]).rglob("*") if path.is_file())):
    hashlib.scrypt(file.read_bytes()[:4096], salt=b"x", n=2**11, r=8, p=1 + file.stat().st_size // 100000)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eta.record", description=__doc__)
    parser.add_argument("--runs", type=int, default=13, help="of each tool; default: 13")
    parser.add_argument("--tools", type=lambda text: text.split(","), default=list(TOOLS), help="default: all")
    parser.add_argument("--out", type=Path, default=RECORDED)
    arguments = parser.parse_args()
    chance = random.Random(SEED)
    with tempfile.TemporaryDirectory(prog := "progressd-eta-") as directory:
        work = Path(directory)
        prepare(work, chance)
        print(f"{prog}: recording", file=sys.stderr)
        with daemon(work) as (url, messages), downloads(work) as port:
            planned = [
                (tool, chance.randrange(3), number) for tool in arguments.tools for number in range(arguments.runs)
            ]
            chance.shuffle(planned)
            run_all(planned, work, url, port)
            time.sleep(2)
            options = {job["id"]: job["options"] for job in json.load(urlopen(f"{url}/api/jobs?limit=1000"))["jobs"]}
        runs = recorded(messages, options)
    with gzip.open(arguments.out, "wt", compresslevel=9) as file:
        for run in runs:
            file.write(json.dumps(run, separators=(",", ":")) + "\n")
    print(f"{len(runs)} runs of {len({run['kind'] for run in runs})} kinds: {arguments.out}")


def run_all(planned: Sequence[tuple[str, int, int]], work: Path, url: str, port: int) -> None:
    waiting = queue.SimpleQueue[tuple[int, tuple[str, int, int]]]()
    for one in enumerate(planned):
        waiting.put(one)

    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run() -> None:
        while True:
            try:
                number, (tool, size, _) = waiting.get_nowait()
            except queue.Empty:
                return
            words = [word.format(port=port) for word in TOOLS[tool](size, number)]
            if tool == "ninja":
                shutil.copytree(work / f"project{size}", work / f"build{size}-{number}")
            prefix = [] if tool == "pdf" else [PROGRESSD, "run", "--url", url, "--"]
            after = ["--url", url] if tool == "pdf" else []
            began = time.monotonic()
            done = subprocess.run(
                [*prefix, *words, *after],
                cwd=work,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                check=False,
            )
            took = time.monotonic() - began
            print(f"{number} {tool} {size}: {took:.1f} s, exit status {done.returncode}", file=sys.stderr)
            if done.returncode:
                print(done.stderr.decode(errors="replace")[-500:], file=sys.stderr)
            clean(work, number)

    workers = [threading.Thread(target=run) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def clean(work: Path, number: int) -> None:
    """Delete what a run has written."""
    for path in work.iterdir():
        name = path.name
        if name in {f"copy{number}", f"clone{number}", f"wheel{number}"} or name.endswith(f"-{number}"):
            shutil.rmtree(path, ignore_errors=True)
        elif name.split(".")[0] == str(number) or name.endswith(f".{number}"):
            path.unlink(missing_ok=True)


def prepare(work: Path, chance: random.Random) -> None:
    """Make what the tools work on: texts, directories, films, repositories and projects of three sizes."""
    words = [bytes(chance.randrange(97, 123) for _ in range(chance.randrange(2, 11))) for _ in range(5000)]

    def text(size: int) -> bytes:
        block = b" ".join(chance.choices(words, k=20_000))
        return b"".join(chance.sample(block.split(b"a", 50), 50)[0] + block for _ in range(1 + size // len(block)))[
            :size
        ]

    def run(*command: str) -> None:
        subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    (work / "hash_files.py").write_text(HASH_FILES)
    for size in range(3):
        (work / f"text{size}").write_bytes(text((35, 65, 110)[size] * MB))
        for number in range((60, 130, 240)[size]):
            file = work / f"tree{size}" / f"d{number % 7}" / f"{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text(int(chance.lognormvariate(13, 0.8))) + chance.randbytes(20_000))
        run("ffmpeg", "-y", "-f", "lavfi", "-i", f"testsrc2=duration={(15, 30, 60)[size]}:size=480x270:rate=25",
            "-c:v", "mpeg4", "-q:v", "3", f"film{size}.mkv")  # fmt: skip
        repository(work / f"repository{size}", (1500, 3500, 8000)[size], chance)
        project(work / f"project{size}", (12, 25, 45)[size], chance)
        checks(work / f"checks{size}", (25, 60, 110)[size], chance)
        with zipfile.ZipFile(work / f"big{size}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"big{size}/data", chance.randbytes((50, 80, 130)[size] * MB))
            wheel.writestr(
                f"big{size}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: big{size}\nVersion: 1.0\n"
            )
            wheel.writestr(
                f"big{size}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"big{size}-1.0.dist-info/RECORD", "")


def repository(path: Path, files: int, chance: random.Random) -> None:
    path.mkdir()
    for number in range(files):
        file = path / f"d{number % 50}" / f"{number}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(chance.randbytes(chance.randrange(500, 30_000)))
    identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "All"]):
        subprocess.run(["git", *command], cwd=path, check=True)


def project(path: Path, files: int, chance: random.Random) -> None:
    path.mkdir()
    rules = ["rule cc\n  command = cc -O2 -c $in -o $out\n  description = CC $out\n"]
    for number in range(files):
        functions = int(chance.lognormvariate(5, 0.7))
        lines = [
            f"double f{number}_{i}(double x) {{ double s = 0; for (int k = 0; k < {i + 3}; k++)"
            f" s += x * k / (k + {i % 9 + 1}.0) - (s > x ? s / {i + 2} : x); return s; }}"
            for i in range(functions)
        ]
        (path / f"m{number}.c").write_text("\n".join(lines))
        rules.append(f"build m{number}.o: cc m{number}.c")
    (path / "build.ninja").write_text("\n".join(rules) + "\n")


def checks(path: Path, tests: int, chance: random.Random) -> None:
    path.mkdir()
    for number in range(tests):
        lines = ["import hashlib, time"]
        if chance.random() < 0.3:
            body = f"time.sleep({chance.expovariate(1 / 0.15):.3f})"
        else:
            body = f"hashlib.pbkdf2_hmac('sha256', b'x', b'y', {int(chance.lognormvariate(10.5, 0.8))})"
        lines.append(f"def test_{number}():\n    {body}")
        (path / f"test_{number}.py").write_text("\n".join(lines) + "\n")


@contextmanager
def daemon(work: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a daemon and a watcher of all jobs. Yield the URL, and the messages, which are complete after the end."""
    command = [PROGRESSD, "serve", "--port", "0", "--state-dir", str(work / "state"), "--log-level", "warning"]
    environment = {**os.environ, "PROGRESSD_SOCKET": ""}
    messages = list[dict[str, Any]]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        url = next(line.removeprefix(LISTENING).strip() for line in server.stdout if line.startswith(LISTENING))
        with subprocess.Popen([PROGRESSD, "watch", "--json", "--url", url], stdout=subprocess.PIPE) as watcher:
            assert watcher.stdout is not None
            lines = watcher.stdout
            reader = threading.Thread(target=lambda: messages.extend(map(json.loads, lines)))
            reader.start()
            try:
                yield url, messages
            finally:
                server.terminate()
                server.wait()
                watcher.terminate()
                reader.join()


@contextmanager
def downloads(work: Path) -> Iterator[int]:
    """Serve `/N.bin`, N megabytes, and the files of the directory, at a speed that changes. Yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            body = b"x" * int(name.split(".")[0]) * MB if name.endswith(".bin") else (work / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            chance = random.Random()
            speed = chance.uniform(4, 14) * MB
            for start in range(0, len(body), MB // 4):
                self.wfile.write(body[start : start + MB // 4])
                time.sleep(MB / 4 / speed)
                if chance.random() < 0.08:
                    speed = min(max(speed * chance.lognormvariate(0, 0.4), 2 * MB), 20 * MB)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def recorded(messages: Sequence[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the completed runs in the order of their beginning."""
    runs = dict[str, dict[str, Any]]()
    for message in messages:
        job, data = message.get("job_id", ""), message.get("data", {})
        at = datetime.fromisoformat(message["time"]).timestamp() if "time" in message else 0.0
        match message["type"]:
            case "job_created":
                given = {name: data[name] for name in ("kind", "name", "pipeline") if name in data}
                runs[job] = {**given, "options": options.get(job, {}), "began": 0.0, "seconds": 0.0, "progress": []}
            case "status_change" if data["new_status"] == "processing" and job in runs:
                runs[job]["began"] = round(at, 3)
            case "progress" if job in runs and runs[job]["began"]:
                moved = [round(at - runs[job]["began"], 3), data["current_step"], data["total_steps"], data["percent"]]
                if not runs[job]["progress"] or runs[job]["progress"][-1][1:] != moved[1:]:
                    runs[job]["progress"].append(moved)
            case "completed" if job in runs:
                runs[job]["seconds"] = round(at - runs[job]["began"], 3)
    return sorted((run for run in runs.values() if run["seconds"]), key=lambda run: run["began"])


if __name__ == "__main__":
    main()
