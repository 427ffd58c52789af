"""A page converted in bands equals the page converted whole."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image, ImageChops, ImageStat
from progressd_pdf.page import OVERLAP, Options, PageConversion, Thumbnail
from progressd_pdf.source import Source, SourcePage
from support.samples import SCAN


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.torture), 3, pytest.param(4, marks=pytest.mark.torture)])
def page(request: pytest.FixtureRequest) -> Iterator[SourcePage]:
    """Pages of the sample scan: straight in colour, crooked in colour, black and white."""
    source = Source(SCAN, 300)
    with source.page(source.sheets[request.param - 1]) as page:
        yield page


def in_bands(page: SourcePage, options: Options, bands: int) -> Image.Image:
    """Join the finished bands of a page."""
    page.sheet = replace(page.sheet, bands=bands)
    work = PageConversion(page, options)
    whole = Image.new(work.mode, work.size)
    for index in range(bands):
        band = work.band(index, lambda stage: None)
        assert band.stored.size == (work.size[0], band.rows[1] - band.rows[0])
        whole.paste(band.stored, (0, band.rows[0]))
    return whole


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        pytest.param(Options(dpi=100), 3, id="finer-scan"),  # pdfium averages differently for each first row
        pytest.param(Options(dpi=150, upscale=False), 0, id="own-dots"),
        pytest.param(Options(dpi=220), 1, id="coarser-scan"),
        pytest.param(Options(dpi=230, advanced=True), 4, id="cleaned"),  # cleaning triples a difference
    ],
)
def test_bands_join_to_the_whole_page(page: SourcePage, options: Options, levels: int) -> None:
    single, joined = in_bands(page, options, 1), in_bands(page, options, 4)
    # Bands extend the edges of a turned scan differently.
    inner = (single.width // 20, single.height // 50, single.width * 19 // 20, single.height * 49 // 50)
    seen = ImageChops.difference(joined.crop(inner), single.crop(inner))
    assert max(high for _, high in ImageStat.Stat(seen).extrema) <= levels


@pytest.mark.parametrize("page", [3], indirect=True)
def test_bands_overlap(page: SourcePage) -> None:
    page.sheet = replace(page.sheet, bands=3)
    work = PageConversion(page, Options(dpi=72))
    rows = [work.band(index, lambda stage: None).rows for index in range(3)]
    assert rows[0][0] == 0
    assert rows[2][1] == work.size[1]
    assert [upper[1] - lower[0] for upper, lower in itertools.pairwise(rows)] == [OVERLAP, OVERLAP]


@pytest.mark.parametrize("page", [3], indirect=True)
def test_a_thumbnail_of_bands_equals_one_of_the_page(page: SourcePage) -> None:
    small = []
    for bands in (1, 4):
        page.sheet = replace(page.sheet, bands=bands)
        work = PageConversion(page, Options(dpi=150))
        miniature = Thumbnail(work.size, 0.2, "L")
        for index in range(bands):
            miniature.add(work.band(index, lambda stage: None))
        small.append(miniature.picture)
    assert ImageStat.Stat(ImageChops.difference(*small)).mean[0] < 4  # half a row at a join
