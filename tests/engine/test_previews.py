"""The previews in memory, and their limits."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.messages import PagePreviewData
from progressd.engine import previews as module
from progressd.engine.previews import OVERHEAD, Previews


def preview(page: int, size: int) -> PagePreviewData:
    return PagePreviewData(page, b64encode(b"\xff\xd8\xff" + b"x" * size).decode(), "Deskewed", 3, 4)


def test_the_newest_preview_of_each_page_is_kept() -> None:
    kept = Previews()
    kept.keep([("a", preview(2, 5)), ("a", preview(1, 5)), ("b", preview(1, 5)), ("a", preview(2, 7))])
    assert [(one.page_number, len(one.picture), one.media_type) for one in kept.of("a")] == [
        (1, 8, "image/jpeg"),
        (2, 10, "image/jpeg"),
    ]
    kept.keep([("a", PagePreviewData(3, "not base64!", "", 0, 0))])
    assert kept.find("a", 3) is None
    kept.forget("a")
    kept.forget("a")
    assert (kept.of("a"), len(kept.of("b")), kept.bytes) == ([], 1, 8 + OVERHEAD)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 5), st.integers(0, 900)), max_size=40))
def test_previews_stay_within_their_limits(given_: list[tuple[str, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_JOB_BYTES", 3000)
        patch.setattr(module, "MAX_BYTES", 5000)
        kept = Previews()
        for job, page, size in given_:
            kept.keep([(job, preview(page, size))])
            assert kept.find(job, page) is not None  # the newest one stays
            sizes = {one: sum(len(p.picture) + OVERHEAD for p in kept.of(one)) for one in "abc"}
            assert all(size <= 3000 for size in sizes.values())
            assert kept.bytes == sum(sizes.values()) <= 5000


def test_the_previews_that_are_oldest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_JOB_BYTES", 3 * OVERHEAD + 50)
    kept = Previews()
    kept.keep(("a", preview(page, 5)) for page in (1, 2, 3, 1, 4, 5))
    assert [one.page_number for one in kept.of("a")] == [1, 4, 5]
