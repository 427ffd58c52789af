"""Determine from the pictures on a page how it was scanned, and reject pictures too large for the memory."""

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_raw  # type: ignore[import-untyped]

MAX_OBJECTS = 20_000
"""Objects on a page that are examined, which takes 0.1 s. Scans have a few dozen, and invisible words."""

MAX_DEPTH = 5
"""Levels of nested forms that are examined. Scans have one or two."""

MAX_PIXELS = {"DCTDecode": 1_300_000_000, "CCITTFaxDecode": 1_300_000_000, "JBIG2Decode": 1_300_000_000}
"""Pixels of a picture, by compressions that pdfium decodes row by row or as bits, within 200 MB."""

MAX_PIXELS_JPX = 50_000_000
"""Pixels of a JPEG 2000, decoded whole at 16 bytes per pixel (2.2 GB measured for A4 at 1200 dpi)."""

MAX_PIXELS_OTHERWISE = 200_000_000
"""Pixels of other pictures, decoded whole at up to 5 bytes per pixel (2.7 GB measured for A4 at 2400 dpi)."""


class ConversionError(Exception):
    """The input cannot be converted. The message is for the user and contains no path."""


@dataclass(frozen=True)
class Scan:
    """How a page was scanned: dots per inch, and whether in black and white."""

    dpi: float
    bilevel: bool


@dataclass(frozen=True)
class _Drawn:
    """An object on a page: pdfium's handle, its type, and the size of its unit square in points."""

    handle: object
    kind: int
    width: float
    height: float


def scan_of(page: pdfium.PdfPage, number: int) -> Scan | None:
    """Return how page `number` was scanned. None if it has visible text or lines, or pictures cover less than half.

    Raises ConversionError if a picture is too large.
    """
    scans: list[Scan] = []
    covered, drawn_on = 0.0, False
    for count, item in enumerate(_objects(page, page, 1.0, 1.0, 0)):
        if item.kind == pdfium_raw.FPDF_PAGEOBJ_IMAGE:
            _check(item.handle, number)
            if item.width * item.height > 0:
                scans.append(_scan_of_picture(item, page))
                covered += item.width * item.height
        elif not _is_invisible(item):
            drawn_on = True
        if count >= MAX_OBJECTS:
            break
    if drawn_on or covered * 2 < math.prod(page.get_size()):
        return None
    return Scan(max(scan.dpi for scan in scans), all(scan.bilevel for scan in scans))


def _objects(page: pdfium.PdfPage, parent: object, across: float, down: float, depth: int) -> Iterator[_Drawn]:
    """Yield the objects of the page and its forms. `across` and `down` are the sizes of the parent's units."""
    nested = parent is not page
    count = pdfium_raw.FPDFFormObj_CountObjects if nested else pdfium_raw.FPDFPage_CountObjects
    get = pdfium_raw.FPDFFormObj_GetObject if nested else pdfium_raw.FPDFPage_GetObject
    for index in range(count(parent)):
        handle = get(parent, index)
        matrix = pdfium_raw.FS_MATRIX()
        pdfium_raw.FPDFPageObj_GetMatrix(handle, matrix)
        width, height = across * math.hypot(matrix.a, matrix.b), down * math.hypot(matrix.c, matrix.d)
        kind = pdfium_raw.FPDFPageObj_GetType(handle)
        if kind != pdfium_raw.FPDF_PAGEOBJ_FORM:
            yield _Drawn(handle, kind, width, height)
        elif depth < MAX_DEPTH:
            yield from _objects(page, handle, width, height, depth + 1)


def _check(picture: object, number: int) -> None:
    width, height = ctypes.c_uint(), ctypes.c_uint()
    pdfium_raw.FPDFImageObj_GetImagePixelSize(picture, width, height)
    pixels = width.value * height.value
    filters = {_filter(picture, index) for index in range(pdfium_raw.FPDFImageObj_GetImageFilterCount(picture))}
    limit = max((MAX_PIXELS.get(name, 0) for name in filters), default=0) or MAX_PIXELS_OTHERWISE
    if pixels > (MAX_PIXELS_JPX if "JPXDecode" in filters else limit):
        raise ConversionError(f"A picture on page {number} has {pixels / 1e6:.0f} million pixels, which is too many.")


def _filter(picture: object, index: int) -> str:
    name = ctypes.create_string_buffer(32)
    pdfium_raw.FPDFImageObj_GetImageFilter(picture, index, name, len(name))
    return name.value.decode("latin-1")


def _scan_of_picture(item: _Drawn, page: pdfium.PdfPage) -> Scan:
    facts = pdfium_raw.FPDF_IMAGEOBJ_METADATA()
    pdfium_raw.FPDFImageObj_GetImageMetadata(item.handle, page, facts)
    dpi = max(facts.width / item.width, facts.height / item.height) * 72
    return Scan(dpi, facts.bits_per_pixel == 1)


def _is_invisible(item: _Drawn) -> bool:
    """Return whether the object is invisible text from OCR."""
    if item.kind != pdfium_raw.FPDF_PAGEOBJ_TEXT:
        return False
    return bool(pdfium_raw.FPDFTextObj_GetTextRenderMode(item.handle) == pdfium_raw.FPDF_TEXTRENDERMODE_INVISIBLE)
