"""Judges by the pictures on a page how it was scanned, and refuses pictures that would not fit into memory."""

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_raw  # type: ignore[import-untyped]

MAX_OBJECTS = 20_000
"""Objects on a page that are looked at, 0.1 s; scans have a few dozen, and words that recognition laid over them."""

MAX_DEPTH = 5
"""Forms within forms that are looked into; a scan is wrapped in one or two."""

MAX_PIXELS = {"DCTDecode": 1_300_000_000, "CCITTFaxDecode": 1_300_000_000, "JBIG2Decode": 1_300_000_000}
"""Pixels of one picture, by compression, that pdfium unpacks row by row or holds as bits, within 200 MB."""

MAX_PIXELS_JPX = 50_000_000
"""Pixels of a JPEG 2000: unpacked whole at 16 bytes a pixel (2.2 GB measured for A4 at 1200 dpi)."""

MAX_PIXELS_OTHERWISE = 200_000_000
"""Pixels of any other picture: unpacked whole at up to 5 bytes a pixel (2.7 GB measured for A4 at 2400 dpi)."""


class Refused(Exception):
    """The input cannot be processed. The message is a sentence for the user, without a path."""


@dataclass(frozen=True)
class Scan:
    """What a scanned page was scanned with: dots per inch, and whether in pure black and white."""

    dpi: float
    bilevel: bool


@dataclass(frozen=True)
class _Drawn:
    """An object on a page: pdfium's handle, its kind, and how wide and high its unit square is, in points."""

    handle: object
    kind: int
    width: float
    height: float


def scan_of(page: pdfium.PdfPage, number: int) -> Scan | None:
    """Return how page `number` was scanned; None if text or lines are drawn on it, or pictures cover less than half.

    Raises Refused if a picture on it is too large.
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
    """Everything drawn on the page, in forms too, where `across` and `down` are the sizes of the parent's units."""
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
        raise Refused(f"A picture on page {number} has {pixels / 1e6:.0f} million pixels, too many to unpack here.")


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
    """Whether it is the text that recognition laid over a scan, which nobody sees."""
    if item.kind != pdfium_raw.FPDF_PAGEOBJ_TEXT:
        return False
    return bool(pdfium_raw.FPDFTextObj_GetTextRenderMode(item.handle) == pdfium_raw.FPDF_TEXTRENDERMODE_INVISIBLE)
