"""Open a PDF, determine which pages were scanned and how, and draw them, a band of rows at a time."""

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pikepdf
import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_raw  # type: ignore[import-untyped]
from PIL import Image, ImageChops

POINTS_PER_INCH = 72

MAX_PAGES = 10_000  # pages of a document; a PDF of 1 MB can have 200,000, which take days
MAX_SIDE_INCHES = 120  # inches; A0 is 33 by 47; a PDF can claim 200 and more
# Pixels of a finished page: A4 at 2400 dpi, or A0 at 600 dpi. It limits the time of a page, not its memory
MAX_PAGE_PIXELS = 600_000_000
MAX_WIDTH_PIXELS = 65_500  # pixels; the limit of a JPEG (libjpeg's JPEG_MAX_DIMENSION)
BAND_PIXELS = 20_000_000  # pixels of a band: 80 MB in Pillow's colour; A3 at 300 dpi is one band
PROBE_SIDE = 1000  # pixels of the longer side of the small copy that shows colour, skew and paper
SHRINK = 1e-6  # the fraction by which a page is drawn too small; if rounding made it a dot larger, pdfium would blur it
# Levels of 255 between the channels. The blocks of a grey JPEG stay below, a pencil mark does not
CHROMA_TOLERANCE = 20
# Pages after which the document is reopened, since pdfium keeps the data of every picture it has read
REOPEN_PAGES = 32
# Objects on a page that are examined, which takes 0.1 s. Scans have a few dozen, and invisible words
MAX_OBJECTS = 20_000
WHOLE_PAGE = 0.95  # the fraction of the page from which a picture hides what was drawn before
SMALL_PICTURE = 0.005  # the fraction of the page below which a picture does not show how the page was scanned
INVISIBLE = (pdfium_raw.FPDF_TEXTRENDERMODE_INVISIBLE, pdfium_raw.FPDF_TEXTRENDERMODE_CLIP)
MAX_DEPTH = 5  # levels of nested forms that are examined; scans have one or two
# Pixels of a picture, by compressions that pdfium decodes row by row or as bits, within 200 MB
MAX_PIXELS = {"DCTDecode": 1_300_000_000, "CCITTFaxDecode": 1_300_000_000, "JBIG2Decode": 1_300_000_000}
# Pixels of a JPEG 2000, decoded whole at 16 bytes per pixel (2.2 GB measured for A4 at 1200 dpi)
MAX_PIXELS_JPX = 50_000_000
# Pixels of other pictures, decoded whole at up to 5 bytes per pixel (2.7 GB measured for A4 at 2400 dpi)
MAX_PIXELS_OTHERWISE = 200_000_000


class ConversionError(Exception):
    """The input cannot be converted. The message is for the user and contains no path."""


@dataclass(frozen=True)
class Scan:
    """How a page was scanned: dots per inch, and whether in black and white."""

    dpi: float
    bilevel: bool


@dataclass(frozen=True)
class Content:
    """The content of a page: its `scan` (None: the page was not scanned), and whether it has text, or nothing."""

    scan: Scan | None
    has_text: bool
    is_blank: bool


@dataclass(frozen=True)
class Geometry:
    """The visible box of a page (left, bottom, right, top) in its own units, and its rotation in degrees clockwise."""

    box: tuple[float, float, float, float]
    rotation: int

    def to_page(self, turn: int = 0) -> pikepdf.Matrix:
        """Return the matrix that maps the unit square to the page as it is seen, after `turn` more degrees."""
        left, bottom, right, top = self.box
        across, along = right - left, top - bottom
        match (self.rotation + turn) % 360:
            case 90:
                return pikepdf.Matrix(0, along, -across, 0, right, bottom)
            case 180:
                return pikepdf.Matrix(-across, 0, 0, -along, right, top)
            case 270:
                return pikepdf.Matrix(0, -along, across, 0, left, top)
        return pikepdf.Matrix(across, 0, 0, along, left, bottom)

    def turning(self, angle: float) -> pikepdf.Matrix:
        """Return the matrix that turns the page by `angle` degrees clockwise around its middle."""
        x, y = (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2
        return pikepdf.Matrix().translated(x, y).rotated(-angle).translated(-x, -y)


@dataclass(frozen=True)
class Sheet:
    """A page: its number from 1, its size on paper in points, and its number of bands."""

    number: int
    width: float
    height: float
    bands: int

    def size_at(self, dpi: float) -> tuple[int, int]:
        """Return the width and height in pixels at `dpi`."""
        scale = dpi / POINTS_PER_INCH
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    def rows_of(self, band: int, height: int) -> tuple[int, int]:
        """Return the first row of `band` and the row past its last in a picture `height` pixels high."""
        return height * band // self.bands, height * (band + 1) // self.bands


class Source:
    """An open PDF with its `sheets`. Raises ConversionError if it cannot be converted."""

    def __init__(self, path: Path, dpi: int) -> None:
        _check_head(path)
        self._path = path
        self._document = _open(path)
        if len(self._document) > MAX_PAGES:
            raise ConversionError(f"The PDF has {len(self._document)} pages; the limit is {MAX_PAGES}.")
        self._dpi = dpi
        units = _user_units(path)
        self.sheets = [self._measure(index, units.get(index, 1.0)) for index in range(len(self._document))]

    def _measure(self, index: int, unit: float) -> Sheet:
        try:
            width, height = (side * unit for side in self._document.get_page_size(index))
        except pdfium.PdfiumError:
            raise ConversionError(f"Page {index + 1} is damaged and cannot be read.") from None
        pixels = min(MAX_PAGE_PIXELS, width * height * (self._dpi / POINTS_PER_INCH) ** 2)
        return Sheet(index + 1, width, height, bands=max(1, math.ceil(pixels / BAND_PIXELS)))

    def check_size(self, sheet: Sheet) -> None:
        """Reject a page that is too small or too large to be drawn."""
        _check_size(sheet.number, sheet.width / POINTS_PER_INCH, sheet.height / POINTS_PER_INCH, self._dpi)

    def page(self, sheet: Sheet) -> "SourcePage":
        """Return the page of `sheet`, for a `with` block."""
        if sheet.number % REOPEN_PAGES == 0:
            self._document.close()
            self._document = _open(self._path)
        try:
            return SourcePage(self._document[sheet.number - 1], sheet)
        except pdfium.PdfiumError:
            raise ConversionError(f"Page {sheet.number} is damaged and cannot be read.") from None


class SourcePage:
    """An open page. `scan`: how the page was scanned, None if it was not. `probe`: a small copy in colour.

    Annotations and fields are not part of the page's picture, because they stay annotations and fields.
    """

    def __init__(self, page: pdfium.PdfPage, sheet: Sheet) -> None:
        self._page = page
        self.sheet = sheet
        content = _content_of(page, sheet.number)
        unit = sheet.width / page.get_width()
        self.scan = replace(content.scan, dpi=content.scan.dpi / unit) if content.scan else None
        self.has_text, self.is_blank = content.has_text, content.is_blank
        self.geometry = Geometry(page.get_bbox(), page.get_rotation())
        longer = max(sheet.width, sheet.height)
        self.probe = self.render(sheet.size_at(PROBE_SIDE / longer * POINTS_PER_INCH), None, "RGB")
        self.grey = _is_grey(self.probe)

    def render(
        self, size: tuple[int, int], rows: tuple[int, int] | None, mode: str, annotations: bool = False
    ) -> Image.Image:
        """Draw the `rows` (None: all) of the page at `size` pixels on white, in mode L or RGB."""
        first, last = rows or (0, size[1])
        kind = pdfium_raw.FPDFBitmap_Gray if mode == "L" else pdfium_raw.FPDFBitmap_BGR
        flags = pdfium_raw.FPDF_GRAYSCALE if mode == "L" else pdfium_raw.FPDF_REVERSE_BYTE_ORDER
        if annotations:
            flags |= pdfium_raw.FPDF_ANNOT
        bitmap = pdfium.PdfBitmap.new_native(size[0], last - first, kind, rev_byteorder=mode != "L")
        pdfium_raw.FPDFBitmap_FillRect(bitmap, 0, 0, size[0], last - first, 0xFFFFFFFF)
        across, down = (side / paper * (1 - SHRINK) for side, paper in zip(size, self._page.get_size(), strict=True))
        matrix = pdfium_raw.FS_MATRIX(across, 0, 0, down, 0, -first)
        clip = pdfium_raw.FS_RECTF(0, 0, size[0], last - first)
        pdfium_raw.FPDF_RenderPageBitmapWithMatrix(bitmap, self._page, matrix, clip, flags)
        if annotations and self._page.formenv:
            pdfium_raw.FPDF_FFLDraw(self._page.formenv, bitmap, self._page, 0, -first, *size, 0, flags)
        picture: Image.Image = bitmap.to_pil()
        return picture

    def __enter__(self) -> "SourcePage":
        return self

    def __exit__(self, *_: object) -> None:
        """Free pdfium's memory of the page, mostly decoded pictures."""
        self._page.close()


def _check_head(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise ConversionError(f"The file could not be read: {error.strerror}.") from None
    if not head:
        raise ConversionError("The file is empty.")
    if b"%PDF-" not in head:  # readers search the first 1024 bytes for it (PDF 1.7, implementation note 13)
        raise ConversionError("The file is not a PDF.")


def _open(path: Path) -> pdfium.PdfDocument:
    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError:
        raise ConversionError(_reason(pdfium_raw.FPDF_GetLastError())) from None
    if len(document) == 0:
        raise ConversionError(_reason(pdfium_raw.FPDF_ERR_SUCCESS))
    document.init_forms()
    return document


def _reason(code: int) -> str:
    """Return why pdfium did not open the document. For a document without pages, pdfium's code is success."""
    if code == pdfium_raw.FPDF_ERR_SUCCESS:
        return "The PDF has no pages."
    if code in (pdfium_raw.FPDF_ERR_PASSWORD, pdfium_raw.FPDF_ERR_SECURITY):
        return "The PDF is encrypted and needs a password to open."
    return "The PDF is damaged and cannot be read."


def _check_size(number: int, width: float, height: float, dpi: int) -> None:
    """Reject a page (in inches) that is too small or too large."""
    page = f"Page {number} is {width:.4g} by {height:.4g} inches"
    if max(width, height) > MAX_SIDE_INCHES:
        raise ConversionError(f"{page}; the limit is {MAX_SIDE_INCHES} inches.")
    if min(width, height) * POINTS_PER_INCH < 1:
        raise ConversionError(f"{page}, which is too small.")
    if width * dpi > MAX_WIDTH_PIXELS or width * height * dpi**2 > MAX_PAGE_PIXELS:
        raise ConversionError(f"{page}, which is too large at {dpi} dpi; choose a lower resolution.")


def _user_units(path: Path) -> dict[int, float]:
    """Return the UserUnit (in 1/72 inch, PDF 1.7 section 7.7.3.3) of the pages that have one, which pdfium ignores.

    For a document that only pdfium can read, the result is empty.
    """
    try:
        with pikepdf.open(path, access_mode=pikepdf.AccessMode.stream, suppress_warnings=True) as pdf:
            pages = (page.obj.get("/UserUnit") for page in pdf.pages)
            return {index: float(unit) for index, unit in enumerate(pages) if unit is not None}
    except (pikepdf.PdfError, TypeError, ValueError):
        return {}


def _is_grey(probe: Image.Image) -> bool:
    """Return whether the page is grey: at most 1 in 10,000 pixels has colour, a tenth of a stamp on A4."""
    red, green, blue = probe.split()
    chroma = ImageChops.lighter(ImageChops.difference(red, green), ImageChops.difference(green, blue))
    coloured = sum(chroma.histogram()[CHROMA_TOLERANCE:])
    return coloured * 10_000 <= probe.width * probe.height


def _content_of(page: pdfium.PdfPage, number: int) -> Content:
    """Return the content of page `number`.

    A page was scanned if pictures cover at least half of it, and nothing else is visible. Nothing is visible behind a
    picture that covers the page. Raises ConversionError if a picture is too large.
    """
    scans: list[Scan] = []
    covered, drawn_on, has_text = 0.0, False, False
    area = math.prod(page.get_size())
    units = [(1.0, 1.0)]  # the size of a unit on the page, and in each of the forms around the object
    for item in itertools.islice(page.get_objects(max_depth=MAX_DEPTH + 1), MAX_OBJECTS):
        if item.type not in (pdfium_raw.FPDF_PAGEOBJ_FORM, pdfium_raw.FPDF_PAGEOBJ_IMAGE):
            has_text = has_text or item.type == pdfium_raw.FPDF_PAGEOBJ_TEXT
            drawn_on = drawn_on or not _is_invisible(item)
            continue
        matrix, (across, down) = item.get_matrix(), units[item.level]  # shadings have no matrix
        width, height = across * math.hypot(matrix.a, matrix.b), down * math.hypot(matrix.c, matrix.d)
        if item.type == pdfium_raw.FPDF_PAGEOBJ_FORM:
            units[item.level + 1 :] = [(width, height)]  # its objects follow
        else:
            _check_picture(item, number)
            if width * height > 0:
                facts = item.get_metadata()
                dpi = max(facts.width / width, facts.height / height) * POINTS_PER_INCH
                if width * height >= SMALL_PICTURE * area:
                    scans.append(Scan(dpi, facts.bits_per_pixel == 1))
                covered += width * height
                if drawn_on and width * height >= WHOLE_PAGE * area and _is_opaque(item):
                    drawn_on = False
    if drawn_on or covered * 2 < area:
        return Content(None, has_text, not (covered or drawn_on))
    if not scans:
        return Content(None, has_text, is_blank=False)
    scan = Scan(max(scan.dpi for scan in scans), all(scan.bilevel for scan in scans))
    return Content(scan, has_text, is_blank=False)


def _check_picture(picture: pdfium.PdfImage, number: int) -> None:
    pixels = math.prod(picture.get_px_size())
    filters = picture.get_filters()
    limit = max((MAX_PIXELS.get(name, 0) for name in filters), default=0) or MAX_PIXELS_OTHERWISE
    if pixels > (MAX_PIXELS_JPX if "JPXDecode" in filters else limit):
        raise ConversionError(f"A picture on page {number} has {pixels / 1e6:.0f} million pixels, which is too many.")


def _is_opaque(picture: pdfium.PdfImage) -> bool:
    """Return whether nothing is visible behind the picture. It is drawn at 72 dpi, with its masks."""
    if pdfium_raw.FPDFPageObj_HasTransparency(picture):
        return False
    try:
        drawn = picture.get_bitmap(render=True)
    except pdfium.PdfiumError:
        return False
    alpha = drawn.to_pil().convert("RGBA").getchannel("A")
    margin = min(2, (min(alpha.size) - 1) // 2)  # the border is smoothed
    inner = alpha.crop((margin, margin, alpha.width - margin, alpha.height - margin))
    return bool(inner.getextrema()[0] == 255)


def _is_invisible(item: pdfium.PdfObject) -> bool:
    """Return whether the object is invisible text from OCR."""
    if item.type != pdfium_raw.FPDF_PAGEOBJ_TEXT:
        return False
    return pdfium_raw.FPDFTextObj_GetTextRenderMode(item) in INVISIBLE
