"""Makes the paper of a scanned page white and its ink black; it never touches a file and knows nothing of PDF."""

from PIL import Image, ImageChops, ImageFilter

MAX_GAIN = 2.0
"""Paper darker than half of white is not lifted all the way: its grain would be lifted with it."""

PAPER_FLOOR = 0.6
"""Of the brightest paper: what is darker over an area is a picture or the scanner's lid, and is lifted ever less."""

DARK_PAGE = 90
"""Of 255. A page whose brightest areas are darker is a picture or a slide, not paper, and stays as it is."""

WHITE_POINT = 235
"""Of 255, after lifting: the paper's grain and the print shining through from behind lie above it."""

MAX_BLACK_POINT = 90
"""Of 255. Ink paler than this is a pencil's or there is none; stretching further would turn grain into specks."""


class Whitening:
    """What to do with one page, judged from a small copy of it, so that all its bands are treated alike."""

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
        """Return the whitened `band`, the `rows` of a page `height` pixels high, in the mode of the probe."""
        if self._dark:
            return band
        width, length = self._gain.size
        box = (0, rows[0] * length / height, width, rows[1] * length / height)
        gain = self._gain.resize(band.size, Image.Resampling.BILINEAR, box=box)
        return _lift(band, gain).point(self._curve * len(band.getbands()))


def _paper(probe: Image.Image) -> Image.Image:
    """The page without its print: the brightest of the neighbourhood, smoothed, a quarter as large."""
    paper = probe.filter(ImageFilter.MaxFilter(5)).reduce(4)
    # Four pixels more on either side, 16 of the probe: lines of text go, and the closing gives borders back.
    for rank in [ImageFilter.MaxFilter(3)] * 4 + [ImageFilter.MinFilter(3)] * 4:
        paper = paper.filter(rank)
    return paper.filter(ImageFilter.GaussianBlur(4))


def _lift(page: Image.Image, gain: Image.Image) -> Image.Image:
    """Divide by the paper in 8 bits: page + page * gain, gain being 255 * (255 / paper - 1)."""
    return ImageChops.add(page, ImageChops.multiply(page, gain))


def _gain(paper: int, floor: float) -> int:
    """Return by how much to lift what lies on paper of this level, fading out below `floor`."""
    lift = min(MAX_GAIN, 255 / max(paper, floor, 1)) - 1
    return round(255 * lift * min(1.0, paper / max(floor, 1)))


def _percentile(histogram: list[int], share: float) -> int:
    """Return the level that `share` of the pixels lie at or below."""
    wanted = share * sum(histogram)
    seen = 0
    for level, count in enumerate(histogram):
        seen += count
        if seen >= wanted:
            return level
    return 255
