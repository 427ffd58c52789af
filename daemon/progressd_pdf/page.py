"""Convert one page of a scan to its finished picture, band by band."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from PIL import Image

from progressd_pdf.deskew import rows_needed, skew_angle, straighten
from progressd_pdf.source import SourcePage
from progressd_pdf.whiten import Whitening

MIN_DPI = 36  # dots per inch; below it letters are illegible
MAX_DPI = 2400  # dots per inch; scanners do not resolve more
OVERLAP = 2  # rows by which bands overlap; otherwise viewers show a white line between them
KERNEL = 4  # rows above and below a band that Lanczos reads (3), and one for rounding
NEARLY = 0.1  # the fraction of a resolution within which resampling a page costs more sharpness than it gains
# Dots per inch from which black and white is legible. Coarser pages become grey, which takes more bytes
BILEVEL_DPI = 200
BLACK_OR_WHITE = [0] * 128 + [255] * 128  # the threshold of black and white scans: a value for each level of grey


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of the pipeline."""

    dpi: Annotated[int, msgspec.Meta(ge=MIN_DPI, le=MAX_DPI)] = 300
    deskew: bool = True
    upscale: bool = True
    ocr: bool = False
    advanced: bool = False
    language: str = ""
    rotate: bool = True
    existing_text: Literal["keep", "redo"] = "keep"

    def band_stages(self) -> list[str]:
        """Return the names of the stages of each band, in order."""
        switched = {"Deskewing": self.deskew, "Upscaling": self.upscale, "Cleaning": self.advanced}
        return ["Rendering", *(stage for stage, on in switched.items() if on), "Writing"]


@dataclass(frozen=True)
class Band:
    """A finished part of a page: its first row, the row past its last, its picture, and the picture to store."""

    rows: tuple[int, int]
    picture: Image.Image
    stored: Image.Image


class PageConversion:
    """The conversion of one page, band by band.

    A scan below `dpi` is drawn at its own resolution, dot for dot, and then resampled (Lanczos). Without `upscale` it
    keeps its resolution. `changes` is false if the page is good as it is, so its own pictures can stay.
    `enlarges` is true if the finished page has far more pixels than the scan.
    """

    def __init__(self, page: SourcePage, options: Options) -> None:
        own_dpi = page.scan.dpi if page.scan else math.inf
        bilevel = page.grey and page.scan is not None and page.scan.bilevel
        finest = options.dpi * (2 if bilevel and 2 * options.dpi >= BILEVEL_DPI else 1)
        drawn_dpi = own_dpi if own_dpi <= finest * (1 + NEARLY) else finest
        coarse = own_dpi < options.dpi * (1 - NEARLY)
        self.dpi = options.dpi if coarse and options.upscale else drawn_dpi
        self._bilevel = bilevel and (drawn_dpi == own_dpi or drawn_dpi >= BILEVEL_DPI)
        self.size = page.sheet.size_at(self.dpi)
        self._page, self._options = page, options
        self._drawn = page.sheet.size_at(drawn_dpi)
        self.mode = "L" if page.grey else "RGB"
        probe = page.probe.convert(self.mode)
        self.angle = skew_angle(probe) if options.deskew else 0.0
        if options.advanced:
            upright = straighten(probe, 0, (0, probe.height), probe.size, self.angle)
            self._whitening = Whitening(upright)
        resampled = self.dpi > own_dpi or (self.dpi < own_dpi and not bilevel)
        self.enlarges = self.dpi >= 1.5 * own_dpi
        self.changes = bool(self.angle) or resampled or (options.advanced and not self._bilevel)

    def band(self, index: int, begin: Callable[[str], None]) -> Band:
        """Return the band `index` of the page. Call `begin` with the name of each stage after Rendering."""
        first, last = self._page.sheet.rows_of(index, self.size[1])
        rows = first, min(last + OVERLAP, self.size[1])
        wanted = self._drawn_rows(rows)
        crooked = rows_needed(wanted, self._drawn, self.angle) if self.angle else wanted

        picture = self._page.render(self._drawn, crooked, self.mode)
        if self._options.deskew:
            begin("Deskewing")
            if self.angle:
                picture = straighten(picture, crooked[0], wanted, self._drawn, self.angle)
        if self._options.upscale:
            begin("Upscaling")
            if self._drawn != self.size:
                picture = self._resample(picture, rows, wanted[0])
        if self._options.advanced:
            begin("Cleaning")
            if not self._bilevel:
                picture = self._whitening.apply(picture, rows, self.size[1])
        return Band(rows, picture, picture.point(BLACK_OR_WHITE, "1") if self._bilevel else picture)

    def _drawn_rows(self, rows: tuple[int, int]) -> tuple[int, int]:
        """Return the rows of the drawn page from which the finished `rows` are resampled."""
        if self._drawn == self.size:
            return rows
        scale = self._drawn[1] / self.size[1]
        first, last = math.floor(rows[0] * scale) - KERNEL, math.ceil(rows[1] * scale) + KERNEL
        return max(0, first), min(self._drawn[1], last)

    def _resample(self, picture: Image.Image, rows: tuple[int, int], top: int) -> Image.Image:
        upper, lower = (row * self._drawn[1] / self.size[1] - top for row in rows)
        box = (0, upper, picture.width, lower)
        return picture.resize((self.size[0], rows[1] - rows[0]), Image.Resampling.LANCZOS, box=box)


class Thumbnail:
    """A small copy of a page, made from its bands, for the preview and for text recognition."""

    def __init__(self, page: tuple[int, int], scale: float, mode: str) -> None:
        self._scale = min(1.0, scale)
        width, height = (max(1, round(side * self._scale)) for side in page)
        self.picture = Image.new(mode, (width, height), 255 if mode == "L" else (255, 255, 255))

    def add(self, band: Band) -> None:
        """Add a band."""
        first, last = (round(row * self._scale) for row in band.rows)
        if last > first:
            size = (self.picture.width, last - first)
            small = band.picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
            self.picture.paste(small.convert(self.picture.mode), (0, first))
