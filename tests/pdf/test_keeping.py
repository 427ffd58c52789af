"""Pages that were not scanned stay as they are, and all that belongs to a page stays with it."""

import ctypes
import io
import json
from collections.abc import Mapping
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import pikepdf
import pypdfium2 as pdfium
import pytest
from pikepdf import Array, Dictionary, Name, Pdf, String
from PIL import Image, ImageDraw, ImageFont, ImageStat
from progressd_pdf.deskew import skew_angle
from progressd_pdf.pdf import main

SIZE = (300.0, 400.0)  # points
DPI = 144  # two pixels a point
WORDS = ("The quick brown fox jumps", "over the lazy dog, again", "and again, all day long")
SKEW = 3.0  # degrees by which the scans rise to the right


def scanned(mode: str = "L", angle: float = SKEW) -> Image.Image:
    """Return a crooked picture of a page with lines of text."""
    page = Image.new(mode, (int(SIZE[0]) * 2, int(SIZE[1]) * 2), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(36)
    for line in range(12):
        draw.text((60, 70 + 55 * line), WORDS[line % 3], fill="black", font=font)
    return page.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white")


def add_scan(pdf: Pdf, picture: Image.Image, words: bytes = b"", size: tuple[float, float] = SIZE) -> pikepdf.Page:
    """Add a page with a picture, and `words` in its content."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    image = pdf.make_stream(buffer.getvalue(), Type=Name.XObject, Subtype=Name.Image, Filter=Name.DCTDecode)
    image.Width, image.Height, image.BitsPerComponent = *picture.size, 8
    image.ColorSpace = Name.DeviceGray if picture.mode == "L" else Name.DeviceRGB
    content = b"q %d 0 0 %d 0 0 cm /Im0 Do Q\n" % size + words
    return add_page(pdf, content, XObject=Dictionary(Im0=image), MediaBox=[0, 0, *size])


def add_page(pdf: Pdf, content: bytes, XObject: object = None, **entries: object) -> pikepdf.Page:  # noqa: N803
    """Add a page with a font, /F0."""
    font = Dictionary(Type=Name.Font, Subtype=Name.Type1, BaseFont=Name.Helvetica)
    resources = Dictionary(Font=Dictionary(F0=font), XObject=XObject or Dictionary())
    page = Dictionary(Type=Name.Page, **({"MediaBox": [0, 0, *SIZE]} | entries), Resources=resources)
    page.Contents = pdf.make_stream(content)
    pdf.pages.append(pikepdf.Page(pdf.make_indirect(page)))
    return pdf.pages[-1]


def text(x: float, y: float, words: str, mode: int = 0) -> bytes:
    """Return the content that shows words, invisible ones with mode 3."""
    return f"BT {mode} Tr /F0 18 Tf 1 0 0 1 {x} {y} Tm ({words}) Tj ET\n".encode()


def link(pdf: Pdf, rect: list[float], target: pikepdf.Page | str) -> pikepdf.Object:
    entries: dict[str, object] = {"/Type": Name.Annot, "/Subtype": Name.Link, "/Rect": rect}
    if isinstance(target, str):
        entries["/A"] = Dictionary(S=Name.URI, URI=String(target))
    else:
        entries["/Dest"] = Array([target.obj, Name.Fit])
    return pdf.make_indirect(Dictionary(entries))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a document of a tagged page with a field, a crooked scan, a turned page, and a scan with invisible text."""
    path = tmp_path_factory.mktemp("mixed") / "mixed.pdf"
    with pikepdf.new() as pdf:
        tagged = b"/P <</MCID 0>> BDC\n" + text(40, 300, "Contents") + b"EMC\n"
        contents = add_page(pdf, tagged, StructParents=0)
        scan = add_scan(pdf, scanned())
        add_page(pdf, text(40, 300, "Sideways"), Rotate=90)
        read = add_scan(pdf, scanned(), text(60, 200, "recognised", mode=3))
        contents.obj.Annots = Array(
            [link(pdf, [40, 290, 140, 320], scan), link(pdf, [40, 250, 140, 280], "https://example.org/")]
        )
        damaged = pdf.make_indirect(Dictionary(Type=Name.Annot, Subtype=Name.Link))  # has no rectangle
        scan.obj.Annots = Array([link(pdf, [0, 190, 40, 210], contents), damaged])
        field = Dictionary(
            Type=Name.Annot, Subtype=Name.Widget, FT=Name.Tx, T=String("name"), V=String("Ada"), Rect=[40, 20, 200, 40]
        )
        contents.obj.Annots.append(pdf.make_indirect(field))
        pdf.Root.AcroForm = Dictionary(Fields=[contents.obj.Annots[2]])
        pdf.Root.PageLabels = Dictionary(Nums=[0, Dictionary(S=Name.r), 1, Dictionary(S=Name.D, St=7)])
        paragraph = pdf.make_indirect(Dictionary(Type=Name.StructElem, S=Name.P, K=0, Pg=contents.obj))
        pdf.Root.MarkInfo = Dictionary(Marked=True)
        parents = Dictionary(Nums=[0, Array([paragraph])])
        pdf.Root.StructTreeRoot = pdf.make_indirect(
            Dictionary(Type=Name.StructTreeRoot, K=paragraph, ParentTree=parents)
        )
        paragraph.P = pdf.Root.StructTreeRoot
        pdf.Root.Lang = String("en")
        with pdf.open_outline() as outline:
            outline.root.append(pikepdf.OutlineItem("Scan", 1, "XYZ", top=300))
            outline.root.append(pikepdf.OutlineItem("Read", 3))
        pdf.docinfo["/Title"] = "Mixed"
        with pdf.open_metadata() as metadata:
            metadata["dc:title"] = "Mixed"
        assert read.label == "9"
        pdf.save(path)
    return path


def convert(source: Path, output: Path, **options: object) -> list[dict[str, Any]]:
    """Run the pipeline, which must succeed. Return its lines. The search for turned pages is slow, and off."""
    given = json.dumps({"rotate": False, **options})
    with redirect_stdout(io.TextIOWrapper(io.BytesIO())) as stdout:
        status = main([str(source), str(output), "--options", given])
    lines = [json.loads(line) for line in stdout.buffer.getvalue().splitlines()]
    assert status == 0, lines[-1]
    return lines


def steps(lines: list[dict[str, Any]]) -> list[str]:
    return [line["data"]["step_name"] for line in lines if line["type"] == "progress"]


@pytest.fixture(scope="module")
def result(mixed: Path) -> Path:
    path = mixed.with_name("result.pdf")
    names = steps(convert(mixed, path, dpi=DPI, rotate=True))
    assert names[-1] == "Finished: 2 of 4 pages were not scanned, and were kept"
    assert [name for name in names if name.startswith("Keeping")] == ["Keeping page 1 of 4", "Keeping page 3 of 4"]
    return path


def described(pdf: Pdf) -> Mapping[str, object]:
    """Return what a reader finds in a document, apart from its pages."""
    numbers = {page.obj.objgen: index for index, page in enumerate(pdf.pages)}

    def plain(item: Any, depth: int = 0) -> object:
        if isinstance(item, Dictionary | pikepdf.Stream):
            if item.objgen in numbers:
                return f"page {numbers[item.objgen]}"
            if depth > 6:
                return "deep"
            return {key: plain(value, depth + 1) for key, value in item.items() if key not in ("/Parent", "/P")}
        if isinstance(item, Array):
            return [plain(value, depth + 1) for value in item]
        return str(item)

    with pdf.open_metadata() as metadata:
        about = {key: str(value) for key, value in metadata.items()}
    return {
        "links": [plain(page.obj.get("/Annots", Array())) for page in pdf.pages],
        "labels": [page.label for page in pdf.pages],
        "catalogue": {key: plain(value) for key, value in pdf.Root.items() if key not in ("/Pages", "/Metadata")},
        "about": about,
        "title": str(pdf.docinfo.Title),
        "boxes": [plain(page.obj.MediaBox) for page in pdf.pages],
        "rotation": [page.rotation for page in pdf.pages],
    }


def test_everything_about_the_pages_stays(mixed: Path, result: Path) -> None:
    with pikepdf.open(mixed) as before, pikepdf.open(result) as after:
        one, other = described(before), described(after)
        moved = other["links"][1][0].pop("/Rect")  # type: ignore[index]
        assert one["links"][1][0].pop("/Rect") != moved  # type: ignore[index]
        assert one == other
        problems = getattr(after, "check_pdf_syntax", None) or after.check
        assert list(problems()) == []


def test_pages_that_were_not_scanned_are_the_same(mixed: Path, result: Path) -> None:
    with pikepdf.open(mixed) as before, pikepdf.open(result) as after:
        for index in (0, 2):
            one, other = before.pages[index].obj, after.pages[index].obj
            assert one.Contents.read_bytes() == other.Contents.read_bytes()
            assert one.Resources.Font.F0.BaseFont == other.Resources.Font.F0.BaseFont


def test_scans_are_straightened(mixed: Path, result: Path) -> None:
    for number in (1, 3):
        before, after = (drawn(path, number) for path in (mixed, result))
        assert skew_angle(before) == pytest.approx(SKEW, abs=0.1)
        assert skew_angle(after) == 0.0


def test_invisible_text_and_links_move_with_the_scan(mixed: Path, result: Path) -> None:
    """A point 100 points left of the middle rises by 100 sin 3° when the scan is turned clockwise."""
    with closing(pdfium.PdfDocument(mixed)) as one, closing(pdfium.PdfDocument(result)) as other:
        before, after = ((document[3].get_textpage().get_charbox(0)) for document in (one, other))
        assert other[3].get_textpage().get_text_bounded().strip() == "recognised"
        assert after[1] - before[1] == pytest.approx(90 * 0.0523, abs=1.5)
    with pikepdf.open(mixed) as one_pdf, pikepdf.open(result) as other_pdf:
        lower = [float(pdf.pages[1].Annots[0].Rect[1]) for pdf in (one_pdf, other_pdf)]
    assert lower[1] - lower[0] == pytest.approx(130 * 0.0523, abs=0.5)


def drawn(path: Path, index: int) -> Image.Image:
    with closing(pdfium.PdfDocument(path)) as document:
        return document[index].render(scale=2.5).to_pil().convert("L")


def test_a_document_without_scans_is_copied(tmp_path: Path) -> None:
    source, output = tmp_path / "text.pdf", tmp_path / "out.pdf"
    with pikepdf.new() as pdf:
        page = add_page(pdf, text(40, 300, "Born digital") + b"/Sh0 sh")
        colours = Dictionary(FunctionType=2, Domain=[0, 1], C0=[1], C1=[0], N=1)
        shading = Dictionary(ShadingType=2, ColorSpace=Name.DeviceGray, Coords=[0, 0, 300, 0], Function=colours)
        page.obj.Resources.Shading = Dictionary(Sh0=shading)
        pdf.save(source)
    names = steps(convert(source, output, advanced=True, ocr=True))
    assert names[-1] == "Finished: this PDF already has text, and was not changed"
    assert output.read_bytes() == source.read_bytes()


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write scans that are upright, upside down and sideways. The last one is crooked too."""
    path = tmp_path_factory.mktemp("turned") / "turned.pdf"
    with pikepdf.new() as pdf:
        for turn in (0, 180, 90):
            picture = scanned(angle=SKEW if turn == 90 else 0).rotate(turn, expand=True)
            page = add_scan(pdf, picture, size=SIZE if turn != 90 else SIZE[::-1])
            page.obj.Annots = Array([link(pdf, [10, 10, 50, 50], "https://example.org/")])
        pdf.save(path)
    return path


def test_turned_scans_become_upright(turned: Path) -> None:
    output = turned.with_name("upright.pdf")
    convert(turned, output, dpi=DPI, ocr=True, rotate=True)
    with pikepdf.open(output) as pdf:
        assert [page.rotation for page in pdf.pages] == [0, 180, 90]
    with closing(pdfium.PdfDocument(output)) as document:
        for page in document:
            found = page.get_textpage()
            assert found.get_text_bounded().split()[:4] == ["The", "quick", "brown", "fox"]
            picture = page.render(scale=1).to_pil().convert("L")
            boxes = [found.get_charbox(number) for number in range(8)]
            assert min(ink(picture, page, box) for box in boxes) > ink(picture, page, (5, 5, 20, 20)) + 20


def ink(picture: Image.Image, page: Any, box: tuple[float, float, float, float]) -> float:
    """Return the mean darkness of a box of the page, given in its own units."""
    left, bottom, right, top = box
    corners = [page_to_device(page, x, y) for x, y in ((left, bottom), (right, top))]
    (x0, x1), (y0, y1) = (sorted(values) for values in zip(*corners, strict=True))
    return 255 - ImageStat.Stat(picture.crop((x0, y0, x1 + 1, y1 + 1))).mean[0]


def page_to_device(page: Any, x: float, y: float) -> tuple[int, int]:
    width, height = map(round, page.get_size())
    across, down = ctypes.c_int(), ctypes.c_int()
    pdfium.raw.FPDF_PageToDevice(page, 0, 0, width, height, 0, x, y, across, down)
    return across.value, down.value


def test_pages_are_not_turned_without_rotate(turned: Path) -> None:
    output = turned.with_name("turned-still.pdf")
    convert(turned, output, dpi=DPI, rotate=False, deskew=False)
    assert output.read_bytes() == turned.read_bytes()


@pytest.mark.parametrize(("choice", "words"), [("keep", "recognised"), ("redo", "The quick brown fox jumps")])
def test_ocr_keeps_or_redoes_invisible_text(choice: str, words: str, tmp_path: Path) -> None:
    source, output = tmp_path / "read.pdf", tmp_path / "out.pdf"
    with pikepdf.new() as pdf:
        add_scan(pdf, scanned(angle=0), text(60, 200, "recognised", mode=3))
        pdf.save(source)
    names = steps(convert(source, output, dpi=DPI, ocr=True, existing_text=choice))
    kept = ": this PDF already has text, and was not changed"
    assert names[-1] == "Finished" + kept * (choice == "keep")
    with closing(pdfium.PdfDocument(output)) as document:
        assert document[0].get_textpage().get_text_bounded().splitlines()[0].strip() == words
    with pikepdf.open(source) as before, pikepdf.open(output) as after:  # the picture was not compressed again
        one, other = (pdf.pages[0].obj.Resources.XObject.Im0.read_raw_bytes() for pdf in (before, after))
        assert one == other


DAMAGED_FORMS = [Array(), Dictionary(Fields=Array([None, 3])), Dictionary(Fields=3), Dictionary(SigFlags=Name.X)]


@pytest.mark.parametrize("form", DAMAGED_FORMS, ids=["array", "fields", "field", "flags"])
def test_a_document_with_a_damaged_form_is_converted(form: pikepdf.Object, tmp_path: Path) -> None:
    source, output = tmp_path / "form.pdf", tmp_path / "out.pdf"
    with pikepdf.new() as pdf:
        add_page(pdf, text(40, 300, "Contents"))
        pdf.Root.AcroForm = form
        pdf.save(source)
    convert(source, output)
    assert output.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("scan", [True, False])
def test_a_signature_stays_valid_or_is_reported(scan: bool, tmp_path: Path) -> None:
    source, output = tmp_path / "signed.pdf", tmp_path / "out.pdf"
    with pikepdf.new() as pdf:
        page = add_scan(pdf, scanned()) if scan else add_page(pdf, text(40, 300, "Contract"))
        value = Dictionary(Type=Name.Sig, Filter=Name("/Adobe.PPKLite"), Contents=String("x" * 64))
        field = Dictionary(Type=Name.Annot, Subtype=Name.Widget, FT=Name.Sig, T=String("s"), V=value, Rect=[0, 0, 0, 0])
        page.obj.Annots = Array([pdf.make_indirect(field)])
        pdf.Root.AcroForm = Dictionary(Fields=page.obj.Annots)
        pdf.save(source)
    last = steps(convert(source, output, dpi=DPI))[-1]
    assert ("the digital signature is no longer valid" in last) is scan
    assert (output.read_bytes() == source.read_bytes()) is not scan


@pytest.mark.parametrize("mask", ["none", "stencil", "soft"])
def test_text_behind_a_picture_is_visible_through_masks(mask: str, tmp_path: Path) -> None:
    """A page whose text a watermark covers was not scanned. Text behind an opaque scan stays hidden, and stays text."""
    source, output = tmp_path / "source.pdf", tmp_path / "out.pdf"
    with pikepdf.new() as pdf:
        page = add_scan(pdf, scanned())
        page.obj.Contents = pdf.make_stream(text(40, 300, "Behind") + page.obj.Contents.read_bytes())
        image = page.obj.Resources.XObject.Im0
        if mask == "stencil":
            entries = {"ImageMask": True, "BitsPerComponent": 1, "Width": 8, "Height": 8}
            page.obj.Resources.XObject.Im0 = pdf.make_stream(
                b"\xf0" * 8, Type=Name.XObject, Subtype=Name.Image, **entries
            )
        elif mask == "soft":
            entries = {"BitsPerComponent": 8, "Width": 2, "Height": 1, "ColorSpace": Name.DeviceGray}
            image.SMask = pdf.make_stream(b"\0\x80", Type=Name.XObject, Subtype=Name.Image, **entries)
        pdf.save(source)
    convert(source, output, dpi=DPI)
    assert (output.read_bytes() == source.read_bytes()) is (mask != "none")
    with closing(pdfium.PdfDocument(output)) as document:
        assert document[0].get_textpage().get_text_bounded().strip() == "Behind"
