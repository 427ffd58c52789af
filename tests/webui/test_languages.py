"""The texts of the page: each is translated, and none is left in the code untranslated."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import progressd
from playwright.sync_api import Browser
from support.serving import ServedDaemon

WEBUI = Path(progressd.__file__).parent / "webui"
CALL = re.compile(r"""\bt\(\s*(['"`])((?:\\.|(?!\1).)*)\1""", re.DOTALL)
PLACEHOLDER = re.compile(r"\{\w+\}")


class Texts(HTMLParser):
    """Collects the texts of elements with `data-t`, and the attributes that it names."""

    def __init__(self) -> None:
        super().__init__()
        self.found = list[str]()
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        names = (given.get("data-t") or "").split()
        self.found += [given.get(name) or "" for name in names]
        self._open = "data-t" in given and not names

    def handle_data(self, data: str) -> None:
        if self._open:
            self.found.append(" ".join(data.split()))
            self._open = False


def texts() -> Iterator[str]:
    """Return the English texts in the code."""
    for path in WEBUI.rglob("*.js"):
        for _, text in CALL.findall(path.read_text()):
            yield text.replace("\\'", "'")
    for path in WEBUI.rglob("*.html"):
        parser = Texts()
        parser.feed(path.read_text())
        yield from parser.found


def test_each_text_is_translated(browser: Browser, served: ServedDaemon) -> None:
    english = set(texts())
    page = browser.new_page()
    page.goto(f"{served.url}/api/health")
    japanese: dict[str, str] = page.evaluate("import('/static/languages/ja.js').then((module) => module.default)")
    page.close()
    assert sorted(english - set(japanese)) == []
    assert sorted(set(japanese) - english) == []
    for key, text in japanese.items():
        assert set(PLACEHOLDER.findall(key)) == set(PLACEHOLDER.findall(text)), key
