"""The texts of the page: each is translated, and none is left in the code untranslated."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser

from playwright.sync_api import Browser, expect
from progressd.config.settings import BUILT_IN_PIPELINES
from progressd.http.static_files import FILES, WEBUI
from progressd.languages.translation import Translation
from support.scenes import every_state
from support.serving import ServedDaemon

CALL = re.compile(r"""\bt\(\s*(['"`])((?:\\.|(?!\1).)*)\1""", re.DOTALL)
VARIABLE = re.compile(r"""(?<![\w.#])t\((?!\s*['"`])""")
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
    parser = Texts()
    for path in WEBUI.glob("*.html"):
        parser.feed(FILES.page(path.name))
    yield from parser.found
    for pipeline in BUILT_IN_PIPELINES.values():
        yield from (pipeline.title, pipeline.description)
        for option in pipeline.options.values():
            yield from (option.title, option.description, *(str(choice).title() for choice in option.choices))


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


def test_each_text_is_written_in_its_call() -> None:
    """Otherwise the test above does not find it."""
    found = {path.name for path in WEBUI.glob("*.js") if VARIABLE.search(path.read_text())}
    assert found == {"text.js", "intake.js", "options.js"}  # the definition, and texts of the server's pipelines


# Returns each text in brackets. A text that the code does not translate has none.
PSEUDO = (
    "export default new Proxy({}, { get: (_, english) => typeof english === 'string' ? `⟦${english}⟧` : undefined });"
)
LEFT_OVER = r"""
(data) => {
  const found = [];
  const visit = (root) => {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (node.shadowRoot) visit(node.shadowRoot);
      const parent = node.parentElement ?? root.host;
      if (node.nodeType === Node.ELEMENT_NODE) {
        for (const name of ['title', 'aria-label', 'placeholder', 'alt']) {
          if (node.hasAttribute(name)) found.push(node.getAttribute(name));
        }
      } else if (!parent.closest('style, script, noscript, template, pre, code, .line')) {
        found.push(node.data);
      }
    }
  };
  visit(document.body);
  const isText = (text) => /[A-Za-z]{3}/.test(text) && !/[⟦⟧]/.test(text); // each half of a plural has one
  const isData = (text) => data.some((one) => text.includes(one));
  return [...new Set(found.map((text) => text.trim()))].filter((text) => isText(text) && !isData(text));
}
"""
NOT_TRANSLATED = ["progressd", "pgd_", "This page needs JavaScript", "producer lost", "English"]


def test_no_text_is_left_in_english(browser: Browser, served: ServedDaemon) -> None:
    ids = every_state(served)
    data = [served.job(id_) for id_ in ids.values()]
    known = [*NOT_TRANSLATED, *ids.values()]
    for job in data:
        known += [job["name"], job["kind"], job["progress"]["step_name"], *job["labels"], *job["labels"].values()]
        known += [task["name"] for task in job["progress"].get("tasks", [])]
        known += [job[name] for name in ("error", "output_path") if name in job]
    with browser.new_context(locale="ja-JP") as context:
        page = context.new_page()
        page.route("**/languages/ja.js", lambda route: route.fulfill(body=PSEUDO, content_type="text/javascript"))
        left = {}
        for path in ["", *(f"jobs/{id_}" for id_ in ids.values()), "stats", "jobs/none"]:
            page.goto(f"{served.url}/{path}")
            expect(page.locator("main:visible", has_text="⟦")).to_be_visible()
            left[path] = page.evaluate(LEFT_OVER, [one for one in known if one])
        assert {path: texts for path, texts in left.items() if texts} == {}


def test_errors_of_the_server_are_in_the_language_of_the_reader(browser: Browser, served: ServedDaemon) -> None:
    job = failed_job(served, "Pipeline error: scan failed with exit status 3: no paper")
    with browser.new_context(locale="ja-JP") as context:
        page = context.new_page()
        page.goto(f"{served.url}/jobs/{job}")
        failure = "パイプラインのエラー: scan が終了ステータス 3 で失敗しました: no paper"
        expect(page.locator("#error")).to_have_text(failure)
        page.goto(served.url)
        expect(page.locator(f"[data-job-id='{job}']")).to_contain_text(failure)
        page.locator("input[type=file]").set_input_files(files=[{"name": "memo.pdf", "mimeType": "", "buffer": b"no"}])
        expect(page.get_by_text("memo.pdf は PDF ではありません").first).to_be_visible()
        given = json.loads((WEBUI / "languages/sentences.ja.json").read_text())
        english = [PLACEHOLDER.sub("X (5)", key) for key in given["sentences"]]
        english += [
            "something new",
            "no job 1",
            "no job 1\n",
            "Pipeline error: pdf was killed by SIGKILL: producer lost",
        ]
        found = page.evaluate(ALL_SENTENCES, english)
        known = Translation(given["sentences"], given["codes"])
        assert found == [known.sentence(text, "too_large") for text in english]


ALL_SENTENCES = """async (all) => {
  const { loadLanguage, sentence } = await import('/static/text.js');
  await loadLanguage(['ja']);
  return all.map((english) => sentence(english, 'too_large'));
}"""


def failed_job(served: ServedDaemon, error: str) -> str:
    job: str = served.request("POST", "/api/jobs", json={"kind": "scan"}).json()["id"]
    for event in (
        {"type": "status_change", "data": {"new_status": "processing"}},
        {"type": "error", "data": {"message": error}},
    ):
        served.request("POST", f"/api/jobs/{job}/events", json=event).raise_for_status()
    return job


def test_the_language_can_be_changed(browser: Browser, served: ServedDaemon) -> None:
    with browser.new_context(locale="ja-JP") as context:
        page = context.new_page()
        page.goto(f"{served.url}/stats")
        expect(page.get_by_role("heading", name="統計")).to_be_visible()
        page.get_by_label("言語").select_option("English")
        expect(page.get_by_role("heading", name="Statistics")).to_be_visible()
        page.goto(served.url)
        expect(page.get_by_label("Language").last).to_have_value("en")
        expect(page.locator("html")).to_have_attribute("lang", "en")
