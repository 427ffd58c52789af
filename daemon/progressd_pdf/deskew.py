"""Find the skew angle of a scanned page, and straighten the page."""

import itertools
import math

from PIL import Image, ImageChops, ImageFilter

MAX_ANGLE = 8.0  # degrees; a larger angle is intended, and searching for it is slow
MIN_ANGLE = 0.15  # degrees; the estimate is accurate to 0.1. Correcting less would blur the page more than it helps
PROMINENCE = 2.5  # the minimum ratio of the best score to the median; text has 3.3 to 80, drawings and blots 1.1 to 2.4


def skew_angle(page: Image.Image) -> float:
    """Return the degrees by which the lines of `page` rise to the right, 0.0 if unknown.

    `page` is a small copy, about 1000 pixels long: lines of text stay separate, and a page takes 0.1 s.

    The skew is the angle at which the sums of neighbouring rows differ most, or of columns for vertical writing
    (Postl's projection profile).
    """
    ink = ink_of(page)
    candidates = [_search(ink), _search(ink.transpose(Image.Transpose.ROTATE_90))]
    prominence, angle = max(candidates)
    return angle if prominence >= PROMINENCE and abs(angle) >= MIN_ANGLE else 0.0


def straighten(
    upright: Image.Image, top: int, rows: tuple[int, int], size: tuple[int, int], angle: float
) -> Image.Image:
    """Return the `rows` (first, past the last) of a page of `size` pixels, turned by `angle` degrees clockwise.

    `upright` has the page's pixels from row `top` on, at least those of `rows_needed`. The edges are extended, so that
    no white wedge appears on yellow paper.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    first, last = _reach(rows, size, angle)
    above, below = max(0, top - first), max(0, last - top - upright.height)
    beside = math.ceil(abs(sin) * size[1] / 2) + 2
    framed = _frame(upright, beside, above, below)
    cx, cy = size[0] / 2, size[1] / 2 - rows[0]
    across = (cos, sin, cx - cos * cx - sin * cy + beside)
    down = (-sin, cos, sin * cx - cos * cy + size[1] / 2 - top + above)
    turned = (size[0], rows[1] - rows[0])
    return framed.transform(turned, Image.Transform.AFFINE, across + down, Image.Resampling.BICUBIC)


def rows_needed(rows: tuple[int, int], size: tuple[int, int], angle: float) -> tuple[int, int]:
    """Return the rows of the crooked page of `size` pixels from which `straighten` makes `rows`."""
    first, last = _reach(rows, size, angle)
    return max(0, min(first, size[1] - 1)), max(1, min(last, size[1]))


def _reach(rows: tuple[int, int], size: tuple[int, int], angle: float) -> tuple[int, int]:
    """Like `rows_needed`, but not limited to the page."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    middle, half = size[1] / 2, abs(sin) * size[0] / 2 + 2  # 2 for the bicubic kernel
    return math.floor(middle + cos * (rows[0] - middle) - half), math.ceil(middle + cos * (rows[1] - middle) + half)


def _frame(picture: Image.Image, beside: int, above: int, below: int) -> Image.Image:
    """Return the picture with its edges extended."""
    width, height = picture.size
    right, bottom = beside + width, above + height
    framed = Image.new(picture.mode, (right + beside, bottom + below))
    framed.paste(picture, (beside, above))
    framed.paste(_beyond(picture.crop((0, 0, 1, height)), (beside, height)), (0, above))
    framed.paste(_beyond(picture.crop((width - 1, 0, width, height)), (beside, height)), (right, above))
    if above:
        framed.paste(_beyond(framed.crop((0, above, framed.width, above + 1)), (framed.width, above)), (0, 0))
    if below:
        framed.paste(_beyond(framed.crop((0, bottom - 1, framed.width, bottom)), (framed.width, below)), (0, bottom))
    return framed


def _beyond(edge: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Extend an edge one pixel wide to `size`. A morphological closing removes letters at the edge."""
    rough = edge.resize((min(64, 4 + edge.width), min(64, 4 + edge.height)), Image.Resampling.BOX)
    paper = rough.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.MinFilter(5))
    return paper.resize(size, Image.Resampling.BILINEAR)


def ink_of(page: Image.Image) -> Image.Image:
    """Return the ink: details darker than their surroundings, such as text (closing minus page, without borders)."""
    grey = page.convert("L")
    paper = grey.reduce(2)
    # Two 3x3 maxima are one 5x5 at half the size, a window of 10 pixels: wider than a stroke, narrower than a border.
    for rank in (
        ImageFilter.MaxFilter(3),
        ImageFilter.MaxFilter(3),
        ImageFilter.MinFilter(3),
        ImageFilter.MinFilter(3),
    ):
        paper = paper.filter(rank)
    ink = ImageChops.subtract(paper.resize(grey.size, Image.Resampling.BILINEAR), grey)
    return ink.point([0 if level < 40 else min(255, 2 * level) for level in range(256)])


def _search(ink: Image.Image) -> tuple[float, float]:
    """Return the prominence of the best angle, and the angle, from a coarse search and finer ones."""
    small = ink.reduce(2)
    coarse = {angle: _sharpness(small, angle) for angle in _around(0.0, MAX_ANGLE, 0.5)}
    best = _sharpest(coarse)
    prominence = coarse[best] / max(sorted(coarse.values())[len(coarse) // 2], 1e-9)
    for reach, step in ((0.4, 0.1), (0.08, 0.02)):
        finer = {angle: _sharpness(ink, angle) for angle in _around(best, reach, step)}
        best = _sharpest(finer)
    return prominence, best


def _sharpest(tried: dict[float, float]) -> float:
    """Return the angle with the highest score; of equal scores (below 0.05 degrees no column moves) the smallest."""
    return max(tried, key=lambda angle: (tried[angle], -abs(angle)))


def _around(middle: float, reach: float, step: float) -> list[float]:
    count = round(reach / step)
    return [middle + step * index for index in range(-count, count + 1)]


def _sharpness(ink: Image.Image, angle: float) -> float:
    """Return how much neighbouring rows differ after a shear by `angle`: more means straighter.

    Columns move by whole pixels: interpolation would blur every angle except 0, so 0 would win too often.
    """
    width, height = ink.size
    slope = math.tan(math.radians(angle))
    shear = (1, 0, 0, -slope, 1, slope * width / 2)
    level = ink.transform(ink.size, Image.Transform.AFFINE, shear, Image.Resampling.NEAREST)
    means = level.convert("F").resize((1, height), Image.Resampling.BOX).tobytes()
    rows = memoryview(means).cast("f")
    return sum((above - below) ** 2 for above, below in itertools.pairwise(rows))
