"""One page's work: the bands it is done in join to the very page that it would be in one piece."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import progressd_pdf
import pytest
from PIL import Image, ImageChops, ImageStat
from progressd_pdf.page import OVERLAP, Miniature, Options, PageWork
from progressd_pdf.source import Source, SourcePage

SCAN = Path(progressd_pdf.__file__).with_name("scan") / "sample-scan.pdf"


@pytest.fixture(params=[1, 3, 4])
def page(request: pytest.FixtureRequest) -> Iterator[SourcePage]:
    """Pages of the sample scan: straight and in colour, crooked and in colour, black and white."""
    source = Source(SCAN, 300)
    with source.page(source.sheets[request.param - 1]) as page:
        yield page


def in_bands(page: SourcePage, options: Options, bands: int) -> Image.Image:
    """The finished page put together from so many bands."""
    page.sheet = replace(page.sheet, bands=bands)
    work = PageWork(page, options)
    whole = Image.new(work.mode, work.size)
    for index in range(bands):
        band = work.band(index, lambda stage: None)
        assert band.stored.size == (work.size[0], band.rows[1] - band.rows[0])
        whole.paste(band.stored, (0, band.rows[0]))
    return whole


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        pytest.param(Options(dpi=100), 3, id="finer-scan"),  # pdfium averages differently from one first row to another
        pytest.param(Options(dpi=150, upscale=False), 0, id="own-dots"),
        pytest.param(Options(dpi=220), 1, id="coarser-scan"),
        pytest.param(Options(dpi=230, advanced=True), 4, id="cleaned"),  # cleaning makes a level of difference three
    ],
)
def test_bands_join_to_the_page_in_one_piece(page: SourcePage, options: Options, levels: int) -> None:
    single, joined = in_bands(page, options, 1), in_bands(page, options, 4)
    # Beyond the edges of a turned scan there is nothing to go by, and a band may guess differently.
    inner = (single.width // 20, single.height // 50, single.width * 19 // 20, single.height * 49 // 50)
    seen = ImageChops.difference(joined.crop(inner), single.crop(inner))
    assert max(high for _, high in ImageStat.Stat(seen).extrema) <= levels


def test_each_band_but_the_last_reaches_under_the_next(page: SourcePage) -> None:
    page.sheet = replace(page.sheet, bands=3)
    work = PageWork(page, Options(dpi=72))
    rows = [work.band(index, lambda stage: None).rows for index in range(3)]
    assert rows[0][0] == 0
    assert rows[2][1] == work.size[1]
    assert [upper[1] - lower[0] for upper, lower in itertools.pairwise(rows)] == [OVERLAP, OVERLAP]


def test_a_miniature_of_bands_is_a_miniature_of_the_page(page: SourcePage) -> None:
    small = []
    for bands in (1, 4):
        page.sheet = replace(page.sheet, bands=bands)
        work = PageWork(page, Options(dpi=150))
        miniature = Miniature(work.size, 0.2, "L")
        for index in range(bands):
            miniature.add(work.band(index, lambda stage: None))
        small.append(miniature.picture)
    assert ImageStat.Stat(ImageChops.difference(*small)).mean[0] < 4  # half a row at a join
