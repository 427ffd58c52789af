"""Make the paper of a scanned page white and its ink black."""

from PIL import Image, ImageChops, ImageFilter

MAX_GAIN = 2.0  # the limit of brightening; more would brighten the grain of dark paper
PAPER_FLOOR = 0.6  # the fraction of the brightest paper below which an area is a picture or the scanner's lid
DARK_PAGE = 90  # of 255; a page without brighter areas is a picture or a slide, and is not changed
WHITE_POINT = 235  # of 255, after brightening; grain and print from the back of the paper are brighter
MAX_BLACK_POINT = 90  # of 255; more contrast would turn the grain of a page with pale ink, or none, into specks


class Whitening:
    """The parameters of one page, computed from a small copy, so that all its bands are treated alike."""

    def __init__(self, probe: Image.Image) -> None:
        paper = _paper(probe)
        levels = [_percentile(band.histogram(), 0.9) for band in paper.split()]
        self._dark = max(levels) < DARK_PAGE
        lift = [_gain(value, level * PAPER_FLOOR) for level in levels for value in range(256)]
        self._gain = paper.point(lift)
        lifted = _lift(probe, self._gain.resize(probe.size, Image.Resampling.BILINEAR))
        black = min(MAX_BLACK_POINT, _percentile(lifted.convert("L").histogram(), 0.02))
        stretch = 255 / (WHITE_POINT - black)
        self._curve = [min(255, max(0, round((value - black) * stretch))) for value in range(256)]

    def apply(self, band: Image.Image, rows: tuple[int, int], height: int) -> Image.Image:
        """Return the whitened `band`: the `rows` of a page of `height` pixels, in the mode of the probe."""
        if self._dark:
            return band
        width, length = self._gain.size
        box = (0, rows[0] * length / height, width, rows[1] * length / height)
        gain = self._gain.resize(band.size, Image.Resampling.BILINEAR, box=box)
        return _lift(band, gain).point(self._curve * len(band.getbands()))


def _paper(probe: Image.Image) -> Image.Image:
    """Return the paper without print, at a quarter of the size: the brightest neighbours, smoothed."""
    paper = probe.filter(ImageFilter.MaxFilter(5)).reduce(4)
    # Four more pixels (16 of the probe) remove lines of text; the closing restores borders.
    for rank in [ImageFilter.MaxFilter(3)] * 4 + [ImageFilter.MinFilter(3)] * 4:
        paper = paper.filter(rank)
    return paper.filter(ImageFilter.GaussianBlur(4))


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
