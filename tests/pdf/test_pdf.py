"""The PDF pipeline as the daemon runs it: a real child process, its lines, its exit status and the file it leaves."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pikepdf
import progressd_pdf
import pypdfium2 as pdfium
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageStat
from progressd_pdf.deskew import skew_angle
from progressd_pdf.page import OVERLAP
from support.waiting import PATIENCE

SCAN = Path(progressd_pdf.__file__).with_name("scan") / "sample-scan.pdf"
COMMAND = [sys.executable, "-W", "error", "-m", "progressd_pdf.pdf"]


@dataclass
class Ended:
    """What one run of the pipeline said and left."""

    status: int
    lines: list[dict[str, Any]]
    stderr: str
    output: Path

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [line["data"] for line in self.lines if line["type"] == kind]

    @property
    def error(self) -> str:
        assert (self.status, self.lines[-1]["type"]) == (1, "error")
        return self.lines[-1]["data"]["message"]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "result.pdf"


def convert(source: Path, output: Path, *more: str, prefix: tuple[str, ...] = (), **options: object) -> Ended:
    """Run the pipeline to its end; whatever happens, nothing but the output may be left beside it."""
    command = [*prefix, *COMMAND, str(source), str(output), "--options", json.dumps(options), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if output.parent.exists():
        assert os.listdir(output.parent) == [output.name] * (done.returncode == 0)
    return Ended(done.returncode, lines, done.stderr, output)


def converted(source: Path, output: Path, *more: str, **options: object) -> Ended:
    """Run the pipeline, which must succeed without a word on stderr."""
    ended = convert(source, output, *more, **options)
    assert (ended.status, ended.stderr) == (0, "")
    return ended


def page_of_scan(tmp_path: Path, number: int) -> Path:
    path = tmp_path / f"page-{number}.pdf"
    with pikepdf.open(SCAN) as scan, pikepdf.new() as one:
        one.pages.append(scan.pages[number - 1])
        one.save(path)
    return path


def picture_pdf(path: Path, picture: Image.Image, points: tuple[float, float], **entries: object) -> Path:
    """A PDF of one page of `points` that a picture fills; `entries` go into the page."""
    with pikepdf.new() as pdf:
        space = pikepdf.Name.DeviceGray if picture.mode == "L" else pikepdf.Name.DeviceRGB
        size = {"/Width": picture.width, "/Height": picture.height, "/ColorSpace": space, "/BitsPerComponent": 8}
        flate = {"/Type": pikepdf.Name.XObject, "/Subtype": pikepdf.Name.Image, "/Filter": pikepdf.Name.FlateDecode}
        image = pikepdf.Stream(pdf, zlib.compress(picture.tobytes()), size | flate)
        drawing = f"q {points[0]} 0 0 {points[1]} 0 0 cm /Im0 Do Q".encode()
        page = pikepdf.Dictionary(
            Type=pikepdf.Name.Page,
            MediaBox=[0, 0, *points],
            Resources=pikepdf.Dictionary(XObject=pikepdf.Dictionary(Im0=image)),
            Contents=pikepdf.Stream(pdf, drawing),
            **entries,
        )
        pdf.pages.append(pikepdf.Page(pdf.make_indirect(page)))
        pdf.save(path)
    return path


def blank_pdf(path: Path, *sizes: tuple[float, float], **entries: object) -> Path:
    with pikepdf.new() as pdf:
        for size in sizes:
            pdf.add_blank_page()
            pdf.pages[-1].MediaBox = [0, 0, *size]
            for key, value in entries.items():
                pdf.pages[-1][f"/{key}"] = value
        pdf.save(path)
    return path


def rendered(path: Path, number: int, scale: float = 1.0, mode: str = "RGB") -> Image.Image:
    """The page drawn by pdfium, not by our code."""
    with closing(pdfium.PdfDocument(path)) as document:
        return document[number - 1].render(scale=scale).to_pil().convert(mode)


def pictures(path: Path) -> list[tuple[int, int, int, str]]:
    """Width, height, bits and colour space of each picture in the file, page by page."""
    with pikepdf.open(path) as pdf:
        images = [image for page in pdf.pages for image in images_of(page)]
        return [(int(i.Width), int(i.Height), int(i.BitsPerComponent), str(i.ColorSpace)) for i in images]


def images_of(page: pikepdf.Page) -> list[pikepdf.Object]:
    drawn = [item for _, item in page.obj.Resources.get("/XObject", pikepdf.Dictionary()).items()]
    return [item for item in drawn if item.Subtype == pikepdf.Name.Image]


def dots_of(path: Path) -> list[Image.Image]:
    """The pictures on the first page, as they are in the file."""
    with pikepdf.open(path) as pdf:
        return [pikepdf.PdfImage(image).as_pil_image() for image in images_of(pdf.pages[0])]


def page_sizes(path: Path) -> list[tuple[float, float]]:
    with closing(pdfium.PdfDocument(path)) as document:
        return [document.get_page_size(index) for index in range(len(document))]


def problems(pdf: pikepdf.Pdf) -> list[str]:
    """What qpdf finds wrong with the file; pikepdf 10 renamed the question."""
    check = getattr(pdf, "check_pdf_syntax", None) or pdf.check
    return list(check())


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference in levels of 255."""
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


# Lines


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return converted(SCAN, tmp_path_factory.mktemp("sample") / "result.pdf")


def test_steps_are_counted_up_to_a_total_known_from_the_start(sample: Ended) -> None:
    steps = sample.of_type("progress")
    assert {step["total_steps"] for step in steps} == {len(steps) - 1}
    assert [step["current_step"] for step in steps] == list(range(len(steps)))


def test_steps_are_named_for_the_reader_of_a_progress_bar(sample: Ended) -> None:
    names = [step["step_name"] for step in sample.of_type("progress")]
    assert names[:5] == [*(f"{stage} page 1 of 4" for stage in DEFAULT_STAGES), "Rendering page 2 of 4"]
    assert names[-3:] == ["Writing page 4 of 4", "Putting the document together", "Finished"]


DEFAULT_STAGES = ["Rendering", "Deskewing", "Upscaling", "Writing"]


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({}, DEFAULT_STAGES),
        ({"deskew": False, "upscale": False}, ["Rendering", "Writing"]),
        ({"advanced": True, "upscale": False}, ["Rendering", "Deskewing", "Cleaning", "Writing"]),
        ({"ocr": True, "deskew": False}, ["Rendering", "Upscaling", "Writing", "Recognising text on"]),
    ],
)
def test_only_stages_that_are_switched_on_are_steps(
    options: dict[str, object], stages: list[str], tmp_path: Path, output: Path
) -> None:
    ended = converted(blank_pdf(tmp_path / "blank.pdf", (100, 100)), output, dpi=72, **options)
    names = [step["step_name"] for step in ended.of_type("progress")]
    assert names == [*(f"{stage} page 1 of 1" for stage in stages), "Putting the document together", "Finished"]


def test_each_finished_page_is_shown_small(sample: Ended) -> None:
    previews = sample.of_type("page_preview")
    assert [preview["page_number"] for preview in previews] == [1, 2, 3, 4]
    for number, preview in enumerate(previews, 1):
        data = base64.b64decode(preview["preview_base64"], validate=True)
        assert len(data) <= 20_000
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, *picture.size) == ("JPEG", preview["width"], preview["height"])
            assert picture.width <= 320
            page = rendered(sample.output, number).resize(picture.size)
            assert difference(picture.convert("RGB"), page) < 12


def test_the_last_line_says_how_many_pages_were_made(sample: Ended) -> None:
    assert sample.lines[-1] == {"type": "completed", "data": {"page_count": 4}}
    assert [line["type"] for line in sample.lines].count("completed") == 1


# What comes out


def test_pages_keep_their_size_and_the_document_its_title(sample: Ended) -> None:
    for after, before in zip(page_sizes(sample.output), page_sizes(SCAN), strict=True):
        assert after == pytest.approx(before, abs=0.01)
    with pikepdf.open(sample.output) as made, pikepdf.open(SCAN) as scan:
        assert str(made.docinfo.Title) == str(scan.docinfo.Title)
        assert problems(made) == []


def test_a_crooked_page_comes_out_straight(sample: Ended) -> None:
    before, after = (rendered(path, 3, scale=1.6, mode="L") for path in (SCAN, sample.output))
    assert skew_angle(before) < -1
    assert skew_angle(after) == 0.0


def test_without_deskew_a_page_stays_crooked(tmp_path: Path, output: Path) -> None:
    converted(page_of_scan(tmp_path, 3), output, dpi=150, deskew=False)
    assert skew_angle(rendered(output, 1, scale=1.6, mode="L")) < -1


def test_a_scan_coarser_than_asked_for_is_resampled_to_it(sample: Ended) -> None:
    assert [size[:2] for size in pictures(sample.output)] == [(1748, 2500)] * 3 + [(1065, 1879)]


def test_without_upscale_a_coarser_scan_keeps_its_dots(tmp_path: Path, output: Path) -> None:
    source = page_of_scan(tmp_path, 1)
    converted(source, output, upscale=False, deskew=False)
    assert pictures(output) == [(874, 1250, 8, "/DeviceRGB")]
    assert difference(*dots_of(source), *dots_of(output)) < 2  # what a second JPEG costs; resampled it would be 3 to 5


def test_drawn_pages_have_no_dots_and_get_those_asked_for(tmp_path: Path, output: Path) -> None:
    converted(blank_pdf(tmp_path / "blank.pdf", (144, 72)), output, dpi=200, upscale=False)
    assert [size[:2] for size in pictures(output)] == [(400, 200)]


def test_black_and_white_stays_black_and_white_to_the_dot(tmp_path: Path, output: Path) -> None:
    source = page_of_scan(tmp_path, 4)
    converted(source, output, advanced=True)
    assert pictures(output) == [(1065, 1879, 1, "/DeviceGray")]
    assert rendered(output, 1, 300 / 72).tobytes() == rendered(source, 1, 300 / 72).tobytes()


def test_grey_stays_grey(tmp_path: Path, output: Path) -> None:
    grey = Image.linear_gradient("L").convert("RGB")  # said to be in colour
    converted(picture_pdf(tmp_path / "grey.pdf", grey, (144, 144)), output, dpi=72, deskew=False)
    assert [space for *_, space in pictures(output)] == ["/DeviceGray"]


def test_a_mark_in_colour_keeps_its_colour(tmp_path: Path, output: Path) -> None:
    page = Image.new("RGB", (288, 288), "white")
    ImageDraw.Draw(page).ellipse((20, 20, 40, 40), fill="red")
    converted(picture_pdf(tmp_path / "stamp.pdf", page, (144, 144)), output, dpi=144, deskew=False)
    red, green, _ = rendered(output, 1).getpixel((15, 15))
    assert red > green + 150


def test_cleaning_makes_yellow_paper_white_and_leaves_ink_black(tmp_path: Path, output: Path) -> None:
    source = page_of_scan(tmp_path, 1)
    converted(source, output, dpi=150, advanced=True)
    margin, text = (270, 300, 295, 460), (40, 300, 250, 460)
    before, after = (rendered(path, 1, 2).reduce(2) for path in (source, output))
    assert ImageStat.Stat(before.crop(margin)).median[2] < 210
    assert min(ImageStat.Stat(after.crop(margin)).median) > 250
    darkest = [min(low for low, _ in page.crop(text).getextrema()) for page in (before, after)]
    assert darkest[1] < darkest[0]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_rotated_and_cropped_page_looks_as_in_a_viewer(rotation: int, tmp_path: Path, output: Path) -> None:
    picture = Image.new("RGB", (200, 300), "white")
    ImageDraw.Draw(picture).rectangle((30, 40, 90, 70), fill="blue")
    source = picture_pdf(tmp_path / "turned.pdf", picture, (200, 300), Rotate=rotation, CropBox=[20, 30, 180, 290])
    converted(source, output, dpi=72, deskew=False)
    assert page_sizes(output) == page_sizes(source) == [(160, 260) if rotation % 180 == 0 else (260, 160)]
    assert difference(rendered(output, 1), rendered(source, 1)) < 3


def test_a_page_in_larger_units_keeps_its_size_on_paper(tmp_path: Path, output: Path) -> None:
    converted(blank_pdf(tmp_path / "plan.pdf", (72, 36), UserUnit=10), output, dpi=72)
    assert page_sizes(output) == [(720, 360)]


def test_filled_forms_and_annotations_are_part_of_the_page(tmp_path: Path, output: Path) -> None:
    source = blank_pdf(tmp_path / "form.pdf", (100, 100))
    with pikepdf.open(source, allow_overwriting_input=True) as pdf:
        look = pikepdf.Stream(pdf, b"0 0 1 rg 0 0 50 50 re f", {"/Subtype": pikepdf.Name.Form, "/BBox": [0, 0, 50, 50]})
        field = pdf.make_indirect(
            pikepdf.Dictionary(
                Type=pikepdf.Name.Annot,
                Subtype=pikepdf.Name.Widget,
                FT=pikepdf.Name.Tx,
                T="name",
                F=4,
                Rect=[0, 0, 50, 50],
                AP=pikepdf.Dictionary(N=look),
            )
        )
        pdf.pages[0].Annots = [field]
        pdf.Root.AcroForm = pikepdf.Dictionary(Fields=[field])
        pdf.save(source)
    converted(source, output, dpi=72)
    red, _, blue = rendered(output, 1).getpixel((20, 80))
    assert blue > red + 150


def test_recognised_text_can_be_searched_where_it_stands(tmp_path: Path, output: Path) -> None:
    source = page_of_scan(tmp_path, 4)
    converted(source, output, ocr=True)
    with closing(pdfium.PdfDocument(output)) as document:
        text = document[0].get_textpage()
        found = text.search("His love of brevity is").get_next()
        assert found is not None
        left, _, _, top = text.get_charbox(found[0])
    assert (left, document_height(source) - top) == pytest.approx((9, 183), abs=5)
    assert rendered(output, 1, 2).tobytes() == rendered(source, 1, 2).tobytes()  # and is not to be seen


def document_height(path: Path) -> float:
    return page_sizes(path)[0][1]


def test_a_scan_recognised_before_is_still_a_scan(tmp_path: Path, output: Path) -> None:
    """Invisible text over it must not make it a drawn page, which would be resampled by pdfium."""
    first = tmp_path / "first.pdf"
    convert_to = tmp_path / "first"
    convert_to.mkdir()
    converted(page_of_scan(tmp_path, 4), convert_to / first.name, ocr=True)
    converted(convert_to / first.name, output)
    assert pictures(output) == [(1065, 1879, 1, "/DeviceGray")]


# Pages in parts


def test_a_page_too_large_for_one_piece_is_worked_on_in_parts(tmp_path: Path, output: Path) -> None:
    source = page_of_scan(tmp_path, 3)
    whole = tmp_path / "whole" / "result.pdf"
    whole.parent.mkdir()
    converted(source, whole, dpi=300, advanced=True)
    parts = converted(source, output, dpi=800, advanced=True)
    names = [step["step_name"] for step in parts.of_type("progress")]
    assert names[:6] == [
        *(
            f"{stage} page 1 of 1, part 1 of 2"
            for stage in ["Rendering", "Deskewing", "Upscaling", "Cleaning", "Writing"]
        ),
        "Rendering page 1 of 1, part 2 of 2",
    ]
    (single,), (upper, lower) = dots_of(whole), dots_of(output)
    joined = Image.new("RGB", (lower.width, upper.height + lower.height - OVERLAP))
    joined.paste(upper, (0, 0))
    joined.paste(lower, (0, upper.height - OVERLAP))
    assert difference(joined.resize(single.size, Image.Resampling.BOX), single) < 3


def test_no_hairline_shows_where_parts_meet(tmp_path: Path, output: Path) -> None:
    black = picture_pdf(tmp_path / "black.pdf", Image.new("L", (50, 50), 0), (360, 360))
    converted(black, output, dpi=1200, deskew=False)
    assert len(pictures(output)) == 2
    for scale in (0.31, 0.5, 0.77, 1.3):
        assert rendered(output, 1, scale, "L").crop((5, 5, 100, 360 * scale - 5)).getextrema()[1] < 10


# What is refused, and why


def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "damaged.pdf"
    path.write_bytes(SCAN.read_bytes()[:2000])
    return path


def encrypted(tmp_path: Path) -> Path:
    path = tmp_path / "encrypted.pdf"
    with pikepdf.open(SCAN) as pdf:
        pdf.save(path, encryption=pikepdf.Encryption(owner="secret", user="secret"))
    return path


def file_of(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "input.pdf"
    path.write_bytes(content)
    return path


def without_pages(tmp_path: Path) -> Path:
    path = tmp_path / "none.pdf"
    with pikepdf.new() as pdf:
        pdf.save(path)
    return path


def jpeg_2000_of(tmp_path: Path, width: int, height: int) -> Path:
    """Says to hold a huge JPEG 2000; what it really holds does not matter, as it must not be unpacked."""
    path = picture_pdf(tmp_path / "huge.pdf", Image.new("L", (1, 1)), (595, 842))
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        (image,) = images_of(pdf.pages[0])
        image.Width, image.Height, image.Filter = width, height, pikepdf.Name.JPXDecode
        pdf.save(path)
    return path


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (lambda tmp: tmp / "missing.pdf", "The file could not be read: No such file or directory."),
        (lambda tmp: file_of(tmp, b""), "The file is empty."),
        (lambda tmp: file_of(tmp, b"PK\x03\x04 a spreadsheet"), "The file is not a PDF."),
        (lambda tmp: file_of(tmp, b"%PDF-1.7\n" + b"rubbish " * 500), "The PDF is damaged and cannot be read."),
        (damaged, "The PDF is damaged and cannot be read."),
        (encrypted, "The PDF is encrypted and needs a password to open."),
        (without_pages, "The PDF has no pages."),
        (
            lambda tmp: blank_pdf(tmp / "huge.pdf", (200, 200), (14400, 14400)),
            "Page 2 is 200 by 200 inches; pages can be at most 120 inches long or wide.",
        ),
        (
            lambda tmp: blank_pdf(tmp / "poster.pdf", (7200, 7200)),
            "Page 1 is 100 by 100 inches, too large for 300 dpi; choose a lower resolution.",
        ),
        (
            lambda tmp: blank_pdf(tmp / "speck.pdf", (100, 0.5)),
            "Page 1 is 1.389 by 0.006944 inches, too small to hold anything.",
        ),
        (
            lambda tmp: jpeg_2000_of(tmp, 40_000, 50_000),
            "A picture on page 1 has 2000 million pixels, too many to unpack here.",
        ),
    ],
)
def test_an_input_that_cannot_be_processed_is_refused_with_its_own_reason(
    source: Any, reason: str, tmp_path: Path, output: Path
) -> None:
    ended = convert(source(tmp_path), output)
    assert ended.error == reason
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dpi": 35}, "$.dpi"),
        ({"dpi": 2401}, "$.dpi"),
        ({"dpi": "300"}, "$.dpi"),
        ({"dpi": True}, "$.dpi"),
        ({"deskew": 1}, "$.deskew"),
        ({"sharpen": True}, "sharpen"),
    ],
)
def test_an_option_that_does_not_exist_or_fit_is_named(options: dict[str, object], named: str, output: Path) -> None:
    ended = convert(SCAN, output, **options)
    assert ended.error.startswith("The options are not valid: ")
    assert named in ended.error


def test_text_recognition_without_tesseract_is_refused(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = "Text recognition (OCR) is not available here: tesseract is not installed."
    assert convert(SCAN, output, ocr=True).error == reason


def test_text_recognition_in_a_language_that_is_not_installed_is_refused(output: Path) -> None:
    ended = convert(SCAN, output, "--ocr-language", "eng+tlh", ocr=True)
    assert ended.error == "Text recognition (OCR) is not available here for the language tlh."


def test_an_output_that_cannot_be_created_is_an_error_in_words(tmp_path: Path) -> None:
    ended = convert(SCAN, tmp_path / "nowhere" / "result.pdf", dpi=72)
    assert ended.error == "The result could not be written: No such file or directory."
    assert "Traceback" in ended.stderr


def test_a_full_disk_is_an_error_in_words_and_leaves_nothing(output: Path) -> None:
    ended = convert(SCAN, output, prefix=("prlimit", "--fsize=100000"), dpi=150)
    assert ended.error == "The result could not be written: File too large."


def test_an_existing_output_is_replaced_only_by_a_finished_one(output: Path) -> None:
    output.write_text("the one before")
    command = [*COMMAND, str(SCAN), str(output), "--options", '{"dpi": 150}']
    failed = subprocess.run(["prlimit", "--fsize=100000", *command], capture_output=True)
    assert (failed.returncode, output.read_text()) == (1, "the one before")
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert len(page_sizes(output)) == 4


# Being stopped


# The pipeline where nobody takes a line after the one of a step: it gets no further, however late the test looks.
HELD = """
import io, sys, threading
from progressd_pdf.pdf import main

class Held(io.FileIO):
    step, full = sys.argv.pop(1).encode(), False

    def write(self, data):
        if self.full:
            threading.Event().wait()
        self.full = self.step in bytes(data)
        return super().write(data)

sys.stdout = io.TextIOWrapper(io.BufferedWriter(Held(1, "w", closefd=False)))
sys.exit(main())
"""


class running:  # noqa: N801  # reads as the statement it is
    """The pipeline under way, ended when the block is left; it gets no further than a step."""

    def __init__(self, source: Path, output: Path, step: str, **options: object) -> None:
        held = [sys.executable, "-W", "error", "-c", HELD, f'"step_name":"{step}']
        command = [*held, str(source), str(output), "--options", json.dumps(options)]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __enter__(self) -> "subprocess.Popen[bytes]":
        return self._child

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()


def until(child: "subprocess.Popen[bytes]", name: str) -> dict[str, Any]:
    """Read lines up to the step whose name begins so."""
    for line in child.stdout:
        step = json.loads(line)
        if step["type"] == "progress" and step["data"]["step_name"].startswith(name):
            return step
    raise AssertionError(f"no step {name}")


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGTERM, "Rendering"),
        (signal.SIGTERM, "Writing"),
        (signal.SIGTERM, "Recognising"),
        (signal.SIGTERM, "Putting"),
        (signal.SIGINT, "Writing"),
    ],
)
def test_a_signal_ends_it_at_once_and_nothing_is_left(number: int, step: str, tmp_path: Path, output: Path) -> None:
    """It also shows that lines are not kept back: otherwise each would be read only after the end."""
    with running(page_of_scan(tmp_path, 1), output, step, ocr=True, dpi=600) as child:
        until(child, step)
        child.send_signal(number)
        assert child.wait(PATIENCE) == 128 + number
        assert child.stderr.read() == b""
        # The signal may come when the whole result has just got its name.
        assert os.listdir(output.parent) in ([], [output.name] if step == "Putting" else [])


def test_killed_outright_it_leaves_nothing_either(output: Path) -> None:
    with running(SCAN, output, "Rendering page 3") as child:
        until(child, "Rendering page 3")
        child.kill()
        child.wait()
        assert os.listdir(output.parent) == []


def test_it_ends_quietly_when_nobody_reads_its_lines(output: Path) -> None:
    command = [*COMMAND, str(SCAN), str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        until(child, "Rendering page 1")  # and the pictures of four pages are more than the pipe holds
        child.stdout.close()
        assert child.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert child.stderr.read() == b""
    assert os.listdir(output.parent) == []


# What it costs


def peak_memory(source: Path, output: Path, **options: object) -> int:
    """Run the pipeline and return its peak resident memory in bytes."""
    command = [*COMMAND, str(source), str(output), "--options", json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_maxrss * 1024


def test_a_page_at_the_finest_resolution_stays_within_its_memory(tmp_path: Path, output: Path) -> None:
    """60 million pixels in colour, all options on, would take 240 MB for each copy if the page were held whole."""
    picture = rendered(SCAN, 1, 150 / 72).crop((100, 600, 300, 840))
    source = picture_pdf(tmp_path / "cut.pdf", picture, (216, 250))
    assert peak_memory(source, output, dpi=2400, advanced=True, ocr=True) < 600e6


@pytest.mark.torture
def test_a_book_of_300_pages_stays_within_its_memory(tmp_path: Path, output: Path) -> None:
    book = tmp_path / "book.pdf"
    with pikepdf.new() as pdf:
        for _ in range(100):
            with pikepdf.open(SCAN) as scan:
                pdf.pages.extend(scan.pages[:3])
        pdf.save(book)
    assert peak_memory(book, output) < 250e6
    assert len(page_sizes(output)) == 300


@pytest.mark.torture
def test_an_a4_page_at_2400_dpi_stays_within_its_memory(tmp_path: Path, output: Path) -> None:
    source = picture_pdf(tmp_path / "a4.pdf", rendered(SCAN, 3, 150 / 72), (595.276, 841.89))
    assert peak_memory(source, output, dpi=2400, advanced=True, ocr=True) < 700e6


def test_it_stands_on_its_own() -> None:
    """No event loop and nothing of the daemon is loaded for a job."""
    say = "import sys, progressd_pdf.pdf; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True).stdout.split()
    assert not {"trio", "asyncio", "quart", "hypercorn"} & set(loaded)
    ours = {name for name in loaded if name.startswith("progressd")}
    assert {name for name in ours if not name.startswith("progressd_pdf")} == set()
