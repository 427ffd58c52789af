"""The estimate of the skew on scanned text, and straightening in bands."""

from contextlib import closing

import pypdfium2 as pdfium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw
from progressd_pdf.deskew import rows_needed, skew_angle, straighten
from support.samples import SCAN


def scanned(number: int, longer_side: int = 1000) -> Image.Image:
    """A page of the sample scan, in grey."""
    with closing(pdfium.PdfDocument(SCAN)) as document:
        page = document[number - 1]
        return page.render(scale=longer_side / max(page.get_size())).to_pil().convert("L")


STRAIGHT = scanned(4)


def turned(angle: float) -> Image.Image:
    return STRAIGHT.rotate(angle, Image.Resampling.BICUBIC, fillcolor=255)


def straightened(page: Image.Image, angle: float, height: int) -> Image.Image:
    """Join straightened bands of `height` rows, each made only from the rows that it needs."""
    whole = Image.new(page.mode, page.size)
    for first in range(0, page.height, height):
        rows = first, min(first + height, page.height)
        top, end = rows_needed(rows, page.size, angle)
        whole.paste(straighten(page.crop((0, top, page.width, end)), top, rows, page.size, angle), (0, first))
    return whole


@settings(max_examples=4)
@given(st.floats(-7.5, 7.5).filter(lambda angle: abs(angle) > 0.3))
def test_the_angle_of_a_turned_page(angle: float) -> None:
    assert skew_angle(turned(angle)) == pytest.approx(angle, abs=0.15)


@pytest.mark.parametrize("angle", [-6.0, 0.4])
def test_a_straightened_page_is_straight(angle: float) -> None:
    page = turned(angle)
    assert skew_angle(straightened(page, skew_angle(page), page.height)) == 0.0


@pytest.mark.parametrize("angle", [-4.0, 2.5])
def test_the_angle_of_vertical_writing(angle: float) -> None:
    page = STRAIGHT.transpose(Image.Transpose.ROTATE_90).rotate(angle, Image.Resampling.BICUBIC, fillcolor=255)
    assert skew_angle(page) == pytest.approx(angle, abs=0.15)


@pytest.mark.parametrize(("number", "angle"), [(1, 0.0), (2, 0.9), (3, -1.4), (4, 0.0)])
def test_the_angles_of_the_sample_scan(number: int, angle: float) -> None:
    assert skew_angle(scanned(number)) == pytest.approx(angle, abs=0.1)


def blot() -> Image.Image:
    page = Image.new("L", (700, 1000), 255)
    ImageDraw.Draw(page).ellipse((100, 200, 600, 500), fill=0)
    return page


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(Image.new("L", (700, 1000), 255), id="blank"),
        pytest.param(Image.new("RGB", (1, 1)), id="one-pixel"),
        pytest.param(Image.new("L", (1, 1000), 128), id="one-column"),
        pytest.param(Image.effect_noise((700, 1000), 90), id="noise"),
        pytest.param(blot(), id="blot"),
    ],
)
def test_a_page_without_lines_has_no_angle(page: Image.Image) -> None:
    assert skew_angle(page) == 0.0


@settings(max_examples=5)
@given(st.floats(-8, 8), st.integers(1, 700))
def test_straightened_bands_join_to_the_whole_page(angle: float, height: int) -> None:
    page = turned(3.0).reduce(2)
    width, length = page.size
    joined, whole = straightened(page, angle, height), straightened(page, angle, length)
    # Bands extend the edges of the scan differently.
    inner = (width // 6, length // 10, width - width // 6, length - length // 10)
    assert ImageChops.difference(joined.crop(inner), whole.crop(inner)).getextrema()[1] <= 1


def test_edges_are_extended() -> None:
    yellow = Image.new("RGB", (600, 800), (230, 215, 170))
    assert straighten(yellow, 0, (0, 800), yellow.size, 7.0).getcolors() == [(600 * 800, (230, 215, 170))]
