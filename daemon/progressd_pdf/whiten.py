"""Make the paper of a scanned page white and its ink black."""

from PIL import Image, ImageChops, ImageFilter

MAX_GAIN = 2.0  # the limit of brightening; more would brighten the grain of dark paper
PAPER_FLOOR = 0.6  # the fraction of the brightest paper below which an area is a picture or the scanner's lid
DARK_PAGE = 90  # of 255; a page without brighter areas is a picture or a slide, and is not changed
WHITE_POINT = 235  # of 255, after brightening; grain and print from the back of the paper are brighter
MAX_BLACK_POINT = 90  # of 255; more contrast would turn the grain of a page with pale ink, or none, into specks
INK = 70  # of 255; darker pixels are ink
TINTED = (16, 32)  # of 255; the chroma of areas, as seen beside the paper, that begin to be and are pictures
COLOURED = (28, 64)  # of 255; the same of pixels; stains and the fringes of black letters have less


class Whitening:
    """The parameters of one page, computed from a small copy, so that all its bands are treated alike.

    Colours stay: areas that are pictures, and each pixel that has another hue than the paper.
    """

    def __init__(self, probe: Image.Image) -> None:
        sharp = _paper(probe)
        paper = sharp.filter(ImageFilter.GaussianBlur(4))
        levels = [_percentile(band.histogram(), 0.9) for band in paper.split()]
        self._dark = max(levels) < DARK_PAGE
        lift = [_gain(value, level * PAPER_FLOOR) for level in levels for value in range(256)]
        self._gain = paper.point(lift)
        lifted = _lift(probe, self._gain.resize(probe.size, Image.Resampling.BILINEAR))
        self._pictures = _pictures(sharp, levels, lifted)
        black = min(MAX_BLACK_POINT, _percentile(lifted.convert("L").histogram(), 0.02))
        stretch = 255 / (WHITE_POINT - black)
        self._curve = [min(255, max(0, round((value - black) * stretch))) for value in range(256)]

    def apply(self, band: Image.Image, rows: tuple[int, int], height: int) -> Image.Image:
        """Return the whitened `band`: the `rows` of a page of `height` pixels, in the mode of the probe."""
        if self._dark:
            return band
        width, length = self._gain.size
        box = (0, rows[0] * length / height, width, rows[1] * length / height)
        gain, kept = (
            part.resize(band.size, Image.Resampling.BILINEAR, box=box) for part in (self._gain, self._pictures)
        )
        lifted = _lift(band, gain)
        if band.mode == "RGB":
            kept = ImageChops.lighter(kept, _chroma(lifted).point(_ramp(*COLOURED)))
        return Image.composite(band, lifted.point(self._curve * len(band.getbands())), kept)


def _pictures(paper: Image.Image, levels: list[int], lifted: Image.Image) -> Image.Image:
    """Return where the page has pictures: 255 where it must stay as it is, 0 where it may become white.

    In a picture, the paper seems to be dark or to have another hue, or most pixels are neither paper nor ink.
    """
    even = paper.point([min(255, 200 * value // max(1, level)) for level in levels for value in range(256)])
    tones = lifted.convert("L").point([255 * (INK < value < WHITE_POINT - 20) for value in range(256)]).reduce(4)
    tones = tones.filter(ImageFilter.BoxBlur(4)).point(_ramp(0.78 * 255, 0.9 * 255))
    for _ in range(3):
        tones = tones.filter(ImageFilter.MaxFilter(3))  # the blur has taken it from the border of the picture
    dark = even.convert("L").point(_ramp(200 * (PAPER_FLOOR + 0.05), 200 * (PAPER_FLOOR - 0.05)))
    found = ImageChops.lighter(tones, dark)
    if paper.mode == "RGB":
        found = ImageChops.lighter(found, _chroma(even).point(_ramp(*TINTED)))
    for rank in [ImageFilter.MaxFilter(3)] * 5 + [ImageFilter.MinFilter(3)] * 5:  # joins the parts of a picture
        found = found.filter(rank)
    return found.filter(ImageFilter.GaussianBlur(1))


def _chroma(picture: Image.Image) -> Image.Image:
    """Return the largest difference between the channels of each pixel."""
    red, green, blue = picture.split()
    high = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return ImageChops.subtract(high, ImageChops.darker(ImageChops.darker(red, green), blue))


def _ramp(none: float, full: float) -> list[int]:
    """Return the table of a curve that rises from 0 at the level `none` to 255 at `full`, which may be lower."""
    return [max(0, min(255, round(255 * (value - none) / (full - none)))) for value in range(256)]


def _paper(probe: Image.Image) -> Image.Image:
    """Return the paper without print, at a quarter of the size: the brightest neighbours."""
    paper = probe.filter(ImageFilter.MaxFilter(5)).reduce(4)
    # Four more pixels (16 of the probe) remove lines of text; the closing restores borders.
    for rank in [ImageFilter.MaxFilter(3)] * 4 + [ImageFilter.MinFilter(3)] * 4:
        paper = paper.filter(rank)
    return paper


def _lift(page: Image.Image, gain: Image.Image) -> Image.Image:
    """Divide by the paper in 8 bits: page + page * gain, gain being 255 * (255 / paper - 1)."""
    return ImageChops.add(page, ImageChops.multiply(page, gain))


def _gain(paper: int, floor: float) -> int:
    """Return the gain for paper of this level. The gain fades out below `floor`."""
    lift = min(MAX_GAIN, 255 / max(paper, floor, 1)) - 1
    return round(255 * lift * min(1.0, paper / max(floor, 1)))


def _percentile(histogram: list[int], share: float) -> int:
    """Return the level at or below which a `share` of the pixels lies."""
    wanted = share * sum(histogram)
    seen = 0
    for level, count in enumerate(histogram):
        seen += count
        if seen >= wanted:
            return level
    return 255
