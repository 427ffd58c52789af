"""Whitening of paper, ink and pictures, also in bands."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw, ImageStat
from progressd_pdf.whiten import Whitening


def printed(paper: tuple[int, int, int], ink: tuple[int, int, int] = (50, 45, 40)) -> Image.Image:
    """A page with lines of strokes, a fifth of it ink, and a black border on the right."""
    page = Image.new("RGB", (700, 1000), paper)
    draw = ImageDraw.Draw(page)
    for top in range(100, 900, 20):
        for left in range(80, 500, 6):
            draw.rectangle((left, top, left + 2, top + 8), fill=ink)
    draw.rectangle((600, 0, 700, 1000), fill=(35, 32, 30))
    return page


def whitened(page: Image.Image) -> Image.Image:
    return Whitening(page).apply(page, (0, page.height), page.height)


@pytest.mark.parametrize("paper", [(250, 248, 245), (235, 220, 170), (190, 180, 150), (150, 140, 130)])
def test_paper_becomes_white_and_ink_stays_dark(paper: tuple[int, int, int]) -> None:
    page = whitened(printed(paper))
    assert min(page.getpixel((300, 50))) >= 250
    assert max(page.getpixel((81, 104))) < 60


def test_shadows_are_removed() -> None:
    shadow = Image.linear_gradient("L").resize((700, 1000)).point([180 + level * 60 // 255 for level in range(256)])
    page = ImageChops.multiply(printed((255, 255, 255)), Image.merge("RGB", [shadow] * 3))
    corners = [whitened(page).getpixel(spot) for spot in ((40, 40), (560, 40), (40, 960), (560, 960))]
    assert min(min(corner) for corner in corners) >= 250


def test_a_black_border_stays_black() -> None:
    assert max(whitened(printed((235, 220, 170))).getpixel((650, 500))) < 60


def test_a_page_without_paper_is_not_changed() -> None:
    night = Image.new("RGB", (700, 1000), (40, 40, 70))
    assert whitened(night).tobytes() == night.tobytes()


def test_blank_white_stays_white() -> None:
    assert whitened(Image.new("L", (700, 1000), 255)).getextrema() == (255, 255)


@settings(max_examples=3)
@given(st.integers(20, 1000))
def test_bands_equal_the_whole_page(height: int) -> None:
    page = printed((200, 190, 150))
    whitening = Whitening(page)
    joined = Image.new("RGB", page.size)
    for first in range(0, page.height, height):
        rows = first, min(first + height, page.height)
        joined.paste(whitening.apply(page.crop((0, rows[0], page.width, rows[1])), rows, page.height), (0, first))
    seen = ImageChops.difference(joined, whitened(page))
    assert max(high for _, high in ImageStat.Stat(seen).extrema) <= 4


@pytest.mark.parametrize("paper", [(250, 248, 245), (235, 220, 170), (190, 180, 150)])
def test_colours_stay(paper: tuple[int, int, int]) -> None:
    """A photo, bars of a chart, a thin stamp and blue ink, on white and on yellow paper."""
    page = printed(paper)
    marked = Image.new("L", page.size)
    photo = Image.merge("RGB", [Image.linear_gradient("L").rotate(angle) for angle in (0, 90, 180)]).resize((240, 160))
    page.paste(photo, (100, 500))
    marked.paste(255, (110, 510, 330, 650))
    for left, colour in ((100, (200, 60, 50)), (180, (60, 110, 190)), (260, (240, 180, 60)), (340, (190, 200, 235))):
        for picture, fill in ((page, colour), (marked, 255)):
            ImageDraw.Draw(picture).rectangle((left, 700, left + 40, 850), fill=fill)
    for left, colour in ((360, (190, 45, 55)), (440, (40, 60, 150))):
        for picture, fill in ((page, colour), (marked, 255)):
            ImageDraw.Draw(picture).ellipse((left, 910, left + 70, 980), outline=fill, width=3)
    after = whitened(page)
    assert max(ImageStat.Stat(ImageChops.difference(page, after), marked).mean) < 4  # levels of 255; it was 30 to 70
    assert min(after.getpixel((300, 50))) >= 250
