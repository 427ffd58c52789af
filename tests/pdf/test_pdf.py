"""The PDF pipeline: its lines, its exit status and its result."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import zlib
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pikepdf
import pypdfium2 as pdfium
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageStat
from progressd_pdf.deskew import skew_angle
from progressd_pdf.pdf import main
from support.samples import SCAN
from support.waiting import PATIENCE

COMMAND = [sys.executable, "-W", "error", "-m", "progressd_pdf.pdf"]
DEFAULT_STAGES = ["Rendering", "Deskewing", "Upscaling", "Writing"]


@dataclass
class Ended:
    """The outcome of a run."""

    status: int
    lines: list[dict[str, Any]]
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


def convert(source: Path, output: Path, *more: str, **options: object) -> Ended:
    """Run the pipeline in this process. Without `rotate=True`, it does not search for turned pages, which is slow."""
    given = json.dumps({"rotate": False, **options})
    with redirect_stdout(io.TextIOWrapper(io.BytesIO())) as stdout:
        status = main([str(source), str(output), "--options", given, *more])
    lines = [json.loads(line) for line in stdout.buffer.getvalue().splitlines()]
    return Ended(status, lines, output)


def converted(source: Path, output: Path, *more: str, **options: object) -> Ended:
    """Run the pipeline, which must succeed and leave no other file."""
    ended = convert(source, output, *more, **options)
    assert (ended.status, os.listdir(output.parent)) == (0, [output.name])
    return ended


def page_of_scan(tmp_path: Path, number: int) -> Path:
    path = tmp_path / f"page-{number}.pdf"
    with pikepdf.open(SCAN) as scan, pikepdf.new() as one:
        one.pages.append(scan.pages[number - 1])
        one.save(path)
    return path


def picture_pdf(path: Path, picture: Image.Image, points: tuple[float, float], **entries: object) -> Path:
    """Write a PDF of one page of `points`, filled by a picture; `entries` go into the page."""
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
    """Draw the page with pdfium."""
    with closing(pdfium.PdfDocument(path)) as document:
        return document[number - 1].render(scale=scale).to_pil().convert(mode)


def pictures(path: Path) -> list[tuple[int, int, int, str]]:
    """Return width, height, bits and colour space of each picture, page by page."""
    with pikepdf.open(path) as pdf:
        images = [image for page in pdf.pages for image in images_of(page)]
        return [(int(i.Width), int(i.Height), int(i.BitsPerComponent), str(i.ColorSpace)) for i in images]


def images_of(page: pikepdf.Page) -> list[pikepdf.Object]:
    drawn = [item for _, item in page.obj.Resources.get("/XObject", pikepdf.Dictionary()).items()]
    return [item for item in drawn if item.Subtype == pikepdf.Name.Image]


def dots_of(path: Path) -> list[Image.Image]:
    """Return the pictures of the first page as they are stored."""
    with pikepdf.open(path) as pdf:
        return [pikepdf.PdfImage(image).as_pil_image() for image in images_of(pdf.pages[0])]


def page_sizes(path: Path) -> list[tuple[float, float]]:
    with closing(pdfium.PdfDocument(path)) as document:
        return [document.get_page_size(index) for index in range(len(document))]


def problems(pdf: pikepdf.Pdf) -> list[str]:
    """Return the errors that qpdf finds; pikepdf 10 renamed the method."""
    check = getattr(pdf, "check_pdf_syntax", None) or pdf.check
    return list(check())


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference in levels of 255."""
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return converted(SCAN, tmp_path_factory.mktemp("sample") / "result.pdf", rotate=True)


def test_the_total_is_known_from_the_start(sample: Ended) -> None:
    steps = sample.of_type("progress")
    assert {step["total_steps"] for step in steps} == {17}
    # The last page is good as it is: it begins two steps, and skips the others.
    assert [step["current_step"] for step in steps] == [*range(14), 16, 17]


def test_steps_have_names(sample: Ended) -> None:
    names = [step["step_name"] for step in sample.of_type("progress")]
    assert names[:5] == [*(f"{stage} page 1 of 4" for stage in DEFAULT_STAGES), "Rendering page 2 of 4"]
    assert names[-4:] == ["Rendering page 4 of 4", "Keeping page 4 of 4", "Writing the document", "Finished"]


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({"deskew": False, "upscale": False}, ["Rendering", "Writing"]),
        ({"advanced": True, "ocr": True}, [*DEFAULT_STAGES[:3], "Cleaning", "Writing", "Recognising text on"]),
    ],
)
def test_only_selected_stages_are_steps(
    options: dict[str, object], stages: list[str], tmp_path: Path, output: Path
) -> None:
    grey = picture_pdf(tmp_path / "grey.pdf", Image.linear_gradient("L"), (100, 100))
    ended = converted(grey, output, dpi=72, **options)
    names = [step["step_name"] for step in ended.of_type("progress")]
    assert names == [*(f"{stage} page 1 of 1" for stage in stages), "Writing the document", "Finished"]


def test_each_page_has_a_preview(sample: Ended) -> None:
    previews = sample.of_type("page_preview")
    assert [preview["page_number"] for preview in previews] == [1, 2, 3, 4]
    for number, preview in enumerate(previews, 1):
        data = base64.b64decode(preview["preview_base64"], validate=True)
        assert len(data) <= 20_000
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, *picture.size) == ("JPEG", preview["width"], preview["height"])
            assert picture.width <= 320
            page = rendered(sample.output, number, scale=3).resize(picture.size)
            assert difference(picture.convert("RGB"), page) < 12


def test_the_last_line_has_the_page_count(sample: Ended) -> None:
    assert sample.lines[-1] == {"type": "completed", "data": {"page_count": 4}}
    assert [line["type"] for line in sample.lines].count("completed") == 1


def test_page_sizes_and_title_are_kept(sample: Ended) -> None:
    for after, before in zip(page_sizes(sample.output), page_sizes(SCAN), strict=True):
        assert after == pytest.approx(before, abs=0.01)
    with pikepdf.open(sample.output) as made, pikepdf.open(SCAN) as scan:
        assert str(made.docinfo.Title) == str(scan.docinfo.Title)
        assert problems(made) == []


def test_a_crooked_page_is_straightened(sample: Ended) -> None:
    before, after = (rendered(path, 3, scale=1.6, mode="L") for path in (SCAN, sample.output))
    assert skew_angle(before) < -1
    assert skew_angle(after) == 0.0


def test_a_coarse_scan_is_resampled(sample: Ended) -> None:
    assert [size[:2] for size in pictures(sample.output)] == [(1748, 2500)] * 3 + [(1065, 1879)]


def test_without_options_a_scan_keeps_its_dots(tmp_path: Path, output: Path) -> None:
    source = page_of_scan(tmp_path, 3)
    converted(source, output, upscale=False, deskew=False)
    assert skew_angle(rendered(output, 1, scale=1.6, mode="L")) < -1
    assert pictures(output) == [(874, 1250, 8, "/DeviceRGB")]
    assert difference(*dots_of(source), *dots_of(output)) < 2  # a second JPEG; resampling would give 3 to 5


def test_black_and_white_is_kept_exactly(tmp_path: Path, output: Path) -> None:
    source = page_of_scan(tmp_path, 4)
    converted(source, output, advanced=True)
    assert pictures(output) == [(1065, 1879, 1, "/DeviceGray")]
    assert rendered(output, 1, 300 / 72).tobytes() == rendered(source, 1, 300 / 72).tobytes()


def test_cleaning_makes_yellow_paper_white(tmp_path: Path, output: Path) -> None:
    source = page_of_scan(tmp_path, 1)
    converted(source, output, dpi=150, advanced=True)
    margin, text = (270, 300, 295, 460), (40, 300, 250, 460)
    before, after = (rendered(path, 1, 2).reduce(2) for path in (source, output))
    assert ImageStat.Stat(before.crop(margin)).median[2] < 210
    assert min(ImageStat.Stat(after.crop(margin)).median) > 250
    darkest = [min(low for low, _ in page.crop(text).getextrema()) for page in (before, after)]
    assert darkest[1] < darkest[0]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Convert a form, a drawn page, a grey and a coloured picture, a page in larger units, and three turned pages."""
    directory = tmp_path_factory.mktemp("pages")
    (directory / "out").mkdir()
    stamp, turned = Image.new("RGB", (288, 288), "white"), Image.new("RGB", (200, 300), "white")
    ImageDraw.Draw(stamp).ellipse((20, 20, 40, 40), fill="red")
    ImageDraw.Draw(turned).rectangle((30, 40, 90, 70), fill="blue")
    gradient, box = Image.linear_gradient("L").convert("RGB"), [20, 30, 180, 290]
    others = [
        blank_pdf(directory / "drawn.pdf", (144, 72)),
        picture_pdf(directory / "grey.pdf", gradient, (144, 144)),
        picture_pdf(directory / "stamp.pdf", stamp, (144, 144)),
        blank_pdf(directory / "plan.pdf", (72, 36), UserUnit=10),
        *(
            picture_pdf(directory / f"{angle}.pdf", turned, (200, 300), Rotate=angle, CropBox=box)
            for angle in (90, 180, 270)
        ),
    ]
    source = blank_pdf(directory / "source.pdf", (100, 100))
    with pikepdf.open(source, allow_overwriting_input=True) as pdf:
        look = pikepdf.Stream(pdf, b"0 0 1 rg 0 0 50 50 re f", {"/Subtype": pikepdf.Name.Form, "/BBox": [0, 0, 50, 50]})
        field = {"/Type": pikepdf.Name.Annot, "/Subtype": pikepdf.Name.Widget, "/FT": pikepdf.Name.Tx, "/T": "name"}
        field |= {"/F": 4, "/Rect": [0, 0, 50, 50], "/AP": pikepdf.Dictionary(N=look)}
        pdf.pages[0].Annots = [pdf.make_indirect(pikepdf.Dictionary(field))]
        pdf.Root.AcroForm = pikepdf.Dictionary(Fields=list(pdf.pages[0].Annots))
        for path in others:
            with pikepdf.open(path) as other:
                pdf.pages.extend(other.pages)
        pdf.save(source)
    return source, converted(source, directory / "out" / "result.pdf", dpi=100, deskew=False, upscale=False).output


def test_fields_stay_fields(pages: tuple[Path, Path]) -> None:
    with pikepdf.open(pages[1]) as pdf:
        (field,) = pdf.Root.AcroForm.Fields
        assert field.T == "name"
        assert pdf.pages[0].Annots[0].objgen == field.objgen


def test_sizes_rotation_and_user_units_are_kept(pages: tuple[Path, Path]) -> None:
    source, output = pages
    assert page_sizes(output) == page_sizes(source)
    with pikepdf.open(source) as before, pikepdf.open(output) as after:
        for one, other in zip(before.pages, after.pages, strict=True):
            for key in ("/MediaBox", "/CropBox", "/Rotate", "/UserUnit"):
                assert one.get(key) == other.get(key)
    for number in range(1, 9):
        assert difference(rendered(output, number), rendered(source, number)) < 3


def test_grey_and_small_coloured_marks_are_kept(pages: tuple[Path, Path]) -> None:
    assert [space for *_, space in pictures(pages[1])[:2]] == ["/DeviceGray", "/DeviceRGB"]
    red, green, _ = rendered(pages[1], 4).getpixel((15, 15))
    assert red > green + 150


def test_recognised_text_is_searchable_and_invisible(tmp_path: Path, output: Path) -> None:
    source = page_of_scan(tmp_path, 4)
    converted(source, output, ocr=True)
    with closing(pdfium.PdfDocument(output)) as document:
        text = document[0].get_textpage()
        found = text.search("His love of brevity is").get_next()
        assert found is not None
        left, _, _, top = text.get_charbox(found[0])
    assert (left, page_sizes(source)[0][1] - top) == pytest.approx((9, 183), abs=5)
    assert rendered(output, 1, 2).tobytes() == rendered(source, 1, 2).tobytes()
    again = output.with_name("again.pdf")
    output = output.rename(tmp_path / "recognised.pdf")
    converted(output, again)
    assert pictures(again) == [(1065, 1879, 1, "/DeviceGray")]  # still a scan, not a drawn page


def test_parts_join_without_a_line(tmp_path: Path, output: Path) -> None:
    black = picture_pdf(tmp_path / "black.pdf", Image.new("L", (50, 50), 0), (360, 360))
    ended = converted(black, output, dpi=1200, deskew=False)
    names = [step["step_name"] for step in ended.of_type("progress")]
    stages = [stage for stage in DEFAULT_STAGES if stage != "Deskewing"]
    assert names[:6] == [f"{stage} page 1 of 1, part {part} of 2" for part in (1, 2) for stage in stages]
    assert len(pictures(output)) == 2
    for scale in (0.31, 0.5, 0.77, 1.3):
        assert rendered(output, 1, scale, "L").crop((5, 5, 100, 360 * scale - 5)).getextrema()[1] < 10


def encrypted(tmp_path: Path) -> Path:
    path = tmp_path / "encrypted.pdf"
    with pikepdf.open(SCAN) as pdf:
        pdf.save(path, encryption=pikepdf.Encryption(owner="secret", user="secret"))
    return path


def file_of(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "input.pdf"
    path.write_bytes(content)
    return path


def jpeg_2000_of(tmp_path: Path, width: int, height: int) -> Path:
    """Write a page that claims to have a huge JPEG 2000, which must not be decoded."""
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
        (lambda tmp: file_of(tmp, SCAN.read_bytes()[:2000]), "The PDF is damaged and cannot be read."),
        (encrypted, "The PDF is encrypted and needs a password to open."),
        (
            lambda tmp: picture_pdf(tmp / "huge.pdf", Image.new("L", (9, 9)), (14400, 14400)),
            "Page 1 is 200 by 200 inches; the limit is 120 inches.",
        ),
        (
            lambda tmp: picture_pdf(tmp / "poster.pdf", Image.new("L", (9, 9)), (7200, 7200)),
            "Page 1 is 100 by 100 inches, which is too large at 300 dpi; choose a lower resolution.",
        ),
        (
            lambda tmp: picture_pdf(tmp / "speck.pdf", Image.new("L", (9, 9)), (100, 0.5)),
            "Page 1 is 1.389 by 0.006944 inches, which is too small.",
        ),
        (
            lambda tmp: jpeg_2000_of(tmp, 40_000, 50_000),
            "A picture on page 1 has 2000 million pixels, which is too many.",
        ),
    ],
)
def test_an_invalid_input_is_an_error(
    source: Any, reason: str, tmp_path: Path, output: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert convert(source(tmp_path), output).error == reason
    assert (capfd.readouterr().err, os.listdir(output.parent)) == ("", [])


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
def test_an_invalid_option_is_an_error(options: dict[str, object], named: str, output: Path) -> None:
    error = convert(SCAN, output, **options).error
    assert error.startswith("The options are not valid: ")
    assert named in error


def test_missing_ocr_is_an_error(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in (
        convert(SCAN, output, "--ocr-language", "eng+tlh_vert", ocr=True),
        convert(SCAN, output, language="eng+tlh_vert", ocr=True),
    ):
        head, tail = "Text recognition (OCR) needs the language tlh_vert of tesseract, which is not installed. ", "eng"
        assert missing.error.startswith(f"{head}Installed: {tail}")
        assert missing.error.endswith(". On Debian: sudo apt install tesseract-ocr-tlh-vert")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert convert(SCAN, output, ocr=True).error == "Text recognition (OCR) needs tesseract, which is not installed."


def test_a_missing_directory_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = convert(SCAN, tmp_path / "nowhere" / "result.pdf", dpi=72)
    assert ended.error == "Cannot write the result: No such file or directory."
    assert "Traceback" in capfd.readouterr().err


def test_a_full_disk_is_an_error(output: Path) -> None:
    command = [
        "prlimit",
        "--fsize=50000",
        *COMMAND,
        str(SCAN),
        str(output),
        "--options",
        '{"dpi": 72, "rotate": false}',
    ]
    full = subprocess.run(command, capture_output=True, text=True)
    assert full.returncode == 1
    assert json.loads(full.stdout.splitlines()[-1])["data"]["message"] == "Cannot write the result: File too large."


def test_a_closed_pipe_ends_it_silently(output: Path) -> None:
    command = [*COMMAND, str(SCAN), str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert b"Rendering page 1" in child.stdout.readline()  # the previews of four pages do not fit into the pipe
        child.stdout.close()
        assert child.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert child.stderr.read() == b""
    assert os.listdir(output.parent) == []


def peak_memory(source: Path, output: Path, **options: object) -> int:
    """Run the pipeline and return its peak resident memory in bytes."""
    command = [*COMMAND, str(source), str(output), "--options", json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_maxrss * 1024


def test_the_finest_resolution_fits_into_memory(tmp_path: Path, output: Path) -> None:
    """The page has 60 million pixels: 240 MB for each copy, if it were held whole."""
    picture = rendered(SCAN, 1, 150 / 72).crop((100, 600, 300, 840))
    source = picture_pdf(tmp_path / "cut.pdf", picture, (216, 250))
    assert peak_memory(source, output, dpi=2400, advanced=True, ocr=True) < 600e6


@pytest.mark.torture
def test_300_pages_fit_into_memory(tmp_path: Path, output: Path) -> None:
    book = tmp_path / "book.pdf"
    with pikepdf.new() as pdf:
        for _ in range(100):
            with pikepdf.open(SCAN) as scan:
                pdf.pages.extend(scan.pages[:3])
        pdf.save(book)
    assert peak_memory(book, output) < 250e6
    assert len(page_sizes(output)) == 300


@pytest.mark.torture
def test_a4_at_2400_dpi_fits_into_memory(tmp_path: Path, output: Path) -> None:
    source = picture_pdf(tmp_path / "a4.pdf", rendered(SCAN, 3, 150 / 72), (595.276, 841.89))
    assert peak_memory(source, output, dpi=2400, advanced=True, ocr=True) < 700e6


def test_it_imports_nothing_of_the_daemon() -> None:
    say = "import sys, progressd_pdf.pdf; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True).stdout.split()
    assert not {"trio", "asyncio", "quart", "hypercorn"} & set(loaded)
    ours = {name for name in loaded if name.startswith("progressd")}
    assert {name for name in ours if not name.startswith("progressd_pdf")} == set()
