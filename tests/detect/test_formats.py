"""The exact lines of real tools, and what is found in them."""

from collections.abc import Sequence

import pytest
from progressd.detect.detector import DESCRIPTOR, STDERR, Detector
from progressd.detect.plan import plan
from progressd.detect.preset_loader import Presets

PRESETS = Presets()


def detector(command: str, *, adapt: bool = True, name: str | None = None) -> Detector:
    return Detector(plan(command.split(), PRESETS, adapt=adapt, name=name))


Values = tuple[float | None, int, int, str, float | None, float | None]  # percent, current, total, step, rate, eta

# ruff: noqa: E501
LINES: Sequence[tuple[str, str | bytes, Values]] = [
    ("ffmpeg -i a", "frame=  266 fps= 25 q=28.0 size=     256KiB time=00:00:04.40 bitrate= 476.6kbits/s speed=3.99x    \r",
     (None, 4, 0, "", 3.99, None)),
    ("rsync a b", "\r        491,520  40%  400.36kB/s    0:00:01  ", (40, 491520, 0, "", 400360, 1)),
    ("rsync a b", "\r      1,228,800 100%  988.09kB/s    0:00:01 (xfr#3, to-chk=0/4)\n", (100, 1228800, 0, "", 988090, 1)),
    ("rsync --no-h a b", "\r         491520  40%  400.36kB/s    0:00:01  ", (40, 491520, 0, "", 400360, 1)),
    ("dd", "\r1048576000 bytes (1.0 GB, 1000 MiB) copied, 3 s, 349 MB/s", (None, 1048576000, 0, "", 349e6, None)),
    ("dd", "\r1048576000 Bytes (1,0 GB, 1000 MiB) kopiert, 3 s, 349 MB/s", (None, 1048576000, 0, "", 349e6, None)),
    ("curl -O u", "\r 55  292k   55  164k    0     0   149k      0  0:00:01  0:00:01 --:--:--  149k",
     (55, 164 * 1024, 292 * 1024, "", 149 * 1024, None)),
    ("curl -# u", "\r######                          42.7%", (42.7, 0, 0, "", None, None)),
    ("curl --parallel u", "\r  6 --   9.9G     0     2     2   0:00:40  0:00:02  0:00:37 4087M",
     (6, int(9.9 * 1024**3), 0, "", 4087 * 1024**2, 37)),
    ("wget u", "    50K .......... .......... .......... .......... .......... 34%  156K 1s\n",
     (34, 51200, 0, "", 156 * 1024, 1)),
    ("wget u", "\r/dev/null            42%[=======>            ] 125.00K   200KB/s    eta 1s",
     (42, 128000, 0, "/dev/null", 200e3, 1)),
    ("yt-dlp u", "[download]  42.7% of   10.00MiB at    1.00MiB/s ETA 00:05\n", (42.7, 0, 10485760, "", 1048576, 5)),
    ("yt-dlp u", "\r\x1b[K[download]   3.0% of ~  10.00MiB at    1.00MiB/s ETA 00:05 (frag 3/120)",
     (3, 0, 10485760, "", 1048576, 5)),
    ("borg extract a", '{"type":"progress_percent","operation":1,"msgid":"extract","current":13000228,"total":26000456,'
     '"message":"50.0% Extracting: a","info":["a"],"finished":false}\n', (50, 13000228, 26000456, "extract", None, None)),
    ("borg create a", "12.3 GB O 9.1 GB C 1.2 GB D 4711 N srv/data/x\r", (None, 12300000000, 0, "srv/data/x", None, None)),
    ("restic backup", '{"message_type":"status","seconds_remaining":2,"percent_done":0.0578,"total_files":3,"files_done":2,'
     '"total_bytes":61200000,"bytes_done":3539613,"current_files":["/a/big"]}\n',
     (5.78, 3539613, 61200000, "/a/big", None, 2)),
    ("restic backup", '{"message_type":"status","percent_done":0,"total_files":1,"total_bytes":61200000}\n',
     (0, 0, 61200000, "", None, None)),
    ("restic backup", "[0:00] 12.56%  2 files 7.330 MiB, total 3 files 58.365 MiB, 0 errors ETA 0:01\n",
     (12.56, 7686062, 61200138, "", None, 1)),
    ("tar cf a", "tar: write 30 W: 296960 (290KiB, 1.4GiB/s)\n", (None, 296960, 0, "", 1.4 * 1024**3, None)),
    ("pip install a", "Progress 1048576 of 5242880\n", (10, 1048576, 5242880, "", None, None)),
    ("docker pull a", "a2318d6c47ec: Downloading [=====>     ]  12.58MB/30.43MB\n",
     (41.34, 12580000, 30430000, "", None, None)),
    ("docker pull a", '{"status":"Downloading","progressDetail":{"current":50,"total":200},"id":"a2318d6c47ec"}\n',
     (25, 50, 200, "", None, None)),
    ("docker build .", "#9 [stage-1 3/8] RUN make\n", (37.5, 3, 8, "RUN make", None, None)),
    ("docker build .", "#9 [3/8] RUN make\n", (37.5, 3, 8, "RUN make", None, None)),
    ("git clone u", "Receiving objects:  59% (19/32), 1.20 MiB | 1.21 MiB/s\r",
     (45.63, 19, 32, "Receiving objects", 1.21 * 1024**2, None)),
    ("git clone u", "remote: Counting objects:  50% (16/32)\r", (1.5, 16, 32, "Counting objects", None, None)),
    ("git clone u", "Empfange Objekte:  59% (19/32)\r", (29.69, 19, 32, "Empfange Objekte", None, None)),
    ("cargo build", "    \x1b[1m\x1b[36mBuilding\x1b[0m [=====>      ] 35/222: serde, syn\r",
     (19.98, 35, 222, "Building: serde, syn", None, None)),
    ("cargo build", "       Fetch [==> ]  88.15%\r", (1.76, 0, 0, "Fetch", None, None)),
    ("ninja", "[2/3] MAKE b\n", (66.67, 2, 3, "MAKE b", None, None)),
    ("ninja", "\r[2/3] MAKE b\x1b[K", (66.67, 2, 3, "MAKE b", None, None)),
    ("ninja", "[2/3  40%] MAKE b\n", (40, 2, 3, "MAKE b", None, None)),
    ("cmake --build b", "[ 50%] Building C object CMakeFiles/m.dir/m.c.o\n",
     (50, 0, 0, "Building C object CMakeFiles/m.dir/m.c.o", None, None)),
    ("make", "[100%] Built target m\n", (100, 0, 0, "Built target m", None, None)),
    ("pytest", "test_x.py ..      [ 50%]\n", (50, 0, 0, "test_x.py", None, None)),
    ("pytest", "test_x.py::test_a PASSED   [ 50%]\n", (50, 0, 0, "test_x.py", None, None)),
    ("pytest", ".......... [ 7/12]\n", (58.33, 7, 12, "", None, None)),
    ("python a.py", "\rPages:  40%|████      | 2/5 [20:00<30:00, 600.00s/it]", (40, 2, 5, "Pages", 1 / 600, 1800)),
    ("python a.py", "\r 35%|███▌      | 1.2M/3.4M [00:01<00:02, 1.10MB/s]",
     (35.29, int(1.2 * 1024**2), int(3.4 * 1024**2), "", 1.1e6, 2)),
    ("python a.py", "\rEpoch 2/10:  40%|####      | 2/5 [20:00<30:00,  4.00it/s]", (14, 2, 5, "Epoch 2/10", 4, 1800)),
    ("python a.py", "\rPages: 12it [00:03,  4.00it/s]", (None, 12, 0, "Pages", 4, None)),
    ("rich", "Working… ━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━  42% 0:00:12\n", (42, 0, 0, "Working…", None, 12)),
    ("tesseract a b", "Page 2 : scan-003.png\n", (None, 2, 0, "scan-003.png", None, None)),
    ("tesseract a b", "Page 3\n", (None, 3, 0, "", None, None)),
    ("zfs send -vP a", "size\t1234567\n12:34:56\t740000\tpool/fs@a\n", (59.94, 740000, 1234567, "pool/fs@a", None, None)),
    ("zfs send -v a", "total estimated size is 1.0G\n12:34:56   512M   pool/fs@a\n",
     (50, 512 * 1024**2, 1024**3, "pool/fs@a", None, None)),
    ("pv -n a", "42\n", (42, 0, 0, "", None, None)),
    ("pv a", '{"e":0.5426,"b":102400,"r":188724.0589,"p":34}\n', (34, 102400, 0, "", 188724.0589, None)),
    ("pv a", " 292KiB 0:00:00 [ 315KiB/s] [======>] 100%            \r", (100, 299008, 0, "", 322560, None)),
    ("pg_basebackup -P", "  1234/56789 kB (2%), 0/1 tablespace\n", (2.17, 1263616, 58151936, "", None, None)),
    ("rclone copy a b", '{"time":"t","level":"notice","msg":"m","stats":{"bytes":50,"totalBytes":200,"speed":10.5,'
     '"eta":null,"transfers":1}}\n', (25, 50, 200, "", 10.5, None)),
    ("rclone copy a b", "2026/12/01 10:00:00 NOTICE:     1.2 MiB / 30 MiB, 4%, 1.1 MiB/s, ETA 26s (xfr#1/9)\n",
     (4, 1258291, 31457280, "", 1.1 * 1024**2, 26)),
    ("zstd a", "\r" + 79 * " " + "\rRead:   128 KiB /   293 KiB ==>  0%", (43.69, 131072, 300032, "", None, None)),
    ("aria2c u", "[#2089b0 400.0KiB/33.2MiB(1%) CN:1 DL:115.7KiB ETA:4m51s]\n",
     (1.18, 409600, 34812723, "", 118476.8, 291)),
    ("qemu-img convert a b", "    (42.00/100%)\r", (42, 0, 0, "", None, None)),
    ("scp a b:", "\rbig.iso          42%  123MB  11.2MB/s   00:15 ETA", (21, 123000000, 0, "big.iso", 11.2e6, 15)),
    ("make -f x", b"\x1b]9;4;1;42\x1b\\", (42, 0, 0, "", None, None)),
    ("systemctl x", b"\x1b]9;4;1;42\x07", (42, 0, 0, "", None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("command", "output", "values"), LINES, ids=lambda value: str(value)[:40])
def test_the_progress_of_a_line_is_found(command: str, output: str | bytes, values: Values) -> None:
    found = detector(command, adapt=False, name="rich" if command == "rich" else None)
    data = output if isinstance(output, bytes) else output.encode()
    updates = [*found.feed(STDERR, data), *found.quiet(STDERR)]
    percent, current, total, step, rate, eta = values
    assert len(updates) == 1
    assert updates[0].percent == (None if percent is None else pytest.approx(percent, abs=0.011))
    assert (updates[0].current_step, updates[0].total_steps, updates[0].step_name) == (current, total, step)
    assert found.found.rate == (None if rate is None else pytest.approx(rate))
    assert found.found.eta == eta
    assert found.source


@pytest.mark.parametrize(
    ("command", "lines", "percents"),
    [
        ("apt-get install a", "dlstatus:1:50.0566:Retrieving file 1 of 3 (4m40s remaining)\n"
         "pmstatus:libc6:amd64:60.0000:Preparing to configure libc6:amd64\n", [20.02, 76]),
        ("ffmpeg -i a", "out_time_us=4400000\nspeed=3.99x\nprogress=continue\nout_time_us=N/A\n", [None]),
        ("e2fsck a", "1 500 1000 /dev/sda1\n2 10 10 /dev/sda1\n", [35, 90]),
        ("tar cf a.tar b", "2000\n4000\n", [None, None]),
        ("gpg -c a", "[GNUPG:] PROGRESS a ? 50 200 B\n", [25]),
    ],
)  # fmt: skip
def test_the_progress_of_a_descriptor_is_found(command: str, lines: str, percents: list[float | None]) -> None:
    found = detector(command)
    assert found._plan.progress_fd
    updates = found.feed(DESCRIPTOR, lines.encode())
    assert [update.percent for update in updates] == [value and pytest.approx(value, abs=0.011) for value in percents]
    assert found.feed(STDERR, lines.encode()) == []


PROSE = [
    "The disk is 50% full, and 60% of the users complain; 70% do not.",
    "Sales rose by 50% in 2024.\nSales rose by 60% in 2025.\n",
    "see chapter 1/2\nsee chapter 2/2\nsee page 1 of 3\n",
    "2026/12/01 10:00:00 started\n2026/12/01 10:00:01 stopped\n2026/12/02 10:00:01 stopped\n",
    "Name  Stmts  Miss  Cover\na.py  50  25  50%\nb.py  10  1  90%\nc.py  10  5  50%\nTOTAL 70  31  55%\n",
    "http://host/1/2 10/20\nhttp://host/1/3 11/20\n",
    "Filesystem  Size Used Avail Use% Mounted on\n/dev/sda1 10G 5G 5G 50% /\n/dev/sda2 10G 6G 4G 60% /home\n",
    "64 bytes from a: icmp_seq=1\n3 packets transmitted, 3 received, 0% packet loss, time 2003ms\n",
    "PASS 1/2\n", "{\"percent\": 50}\n{\"percent\": 60}\n", "version 1.2/3.4\nversion 1.3/3.4\n",
    "100%\n", "load 10%\nload 20%\nload 5%\nload 30%\nload 7%\n",
]  # fmt: skip


@pytest.mark.parametrize("text", PROSE, ids=lambda text: text[:30])
def test_prose_has_no_progress(text: str) -> None:
    found = detector("bash script.sh")
    assert [*found.feed(1, text.encode()), *found.quiet(1)] == []
    assert found.source == ""


@pytest.mark.parametrize(
    ("output", "source", "percents"),
    [
        ("\r 10%\r 20%\r 30%\n", "percentages", [20, 30]),
        ("Copying 10%\rCopying 20%\rCopying 30%\r", "percentages", [20, 30]),
        ("10%\n20%\n30%\n40%\n", "percentages", [30, 40]),
        ("[ 10%] a\n[ 20%] b\n[ 30%] c\n", "percentages", [20, 30]),
        ("[1/4] a\n[2/4] b\n[3/4] c\n", "counts", [50, 75]),
        ("Converting a (1/4)\nConverting b (2/4)\nConverting c (3/4)\n", "counts", [75]),
        ("Step 1 of 4\nStep 2 of 4\nStep 3 of 4\n", "counts", [75]),
        ("\r1,000/4,000 files\r2,000/4,000 files", "counts", [50]),
        ("50% of people like 1% milk\n[1/4] a\n[2/4] b\n[3/4] c\n60% too\n", "counts", [50, 75]),
        ("\x1b[1A10%\n\x1b[1A20%\n", "percentages", [20]),
        ("[  1.5%]\r[ 12,5%]\r", "percentages", [12.5]),
        ("[1/2]\n[2/2]\n\r10%\r20%\r", "percentages", [100, 100]),
        ("[1/9]\n[2/9]\n\r10%\r20%\r", "counts", [22.22]),
        ("\rcopied 999 KiB 10%\rcopied 1.2 MiB 20%", "percentages", [20]),
        ("remote: Counting objects:  50% (1/2)\rReceiving objects:  50% (1/2)\r", "git", [1.5, 40]),
        ("\r        491,520  40%  400.36kB/s    0:00:01  ", "rsync", [40]),
        ("Downloading:  50% (3/6)\rDownloading:  67% (4/6)\r", "counts", [66.67]),
        ("x\x08\x08 10%\x08\x08\x08\x08 20%\x08\x08\x08\x08 30%\n", "percentages", [20, 30]),
    ],
)
def test_rising_numbers_in_similar_frames_are_progress(output: str, source: str, percents: list[float]) -> None:
    found = detector("bash script.sh")
    updates = [*found.feed(1, output.encode()), *found.quiet(1)]
    assert [update.percent for update in updates] == [pytest.approx(value, abs=0.011) for value in percents]
    assert found.source == source


def test_a_better_source_replaces_a_worse_one() -> None:
    found = detector("bash x.sh")
    found.feed(1, b"\r50%\r60%\r ")
    assert found.source == "percentages"
    (update,) = found.feed(2, b'{"message_type":"status","percent_done":0.1,"total_bytes":100,"bytes_done":10}\n')
    assert (found.source, update.percent) == ("JSON lines", 10)
    assert found.feed(1, b"\r70%\r") == []
    (update,) = found.feed(1, b"\x1b]9;4;1;5\x07")
    assert (found.source, update.percent) == ("OSC 9;4", 5)
    assert found.feed(1, b"\x1b]9;4;0\x07\x1b]9;4;3\x07\x1b]9;4;2;50\x07") == []


def test_nothing_is_searched_with_the_name_none() -> None:
    found = detector("rsync a b", name="none")
    assert found.feed(1, b"\r 491,520  40%  400.36kB/s    0:00:01  \n") == []
    assert found._plan.command == ("rsync", "a", "b")
