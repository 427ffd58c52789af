"""The Japanese pages have the structure, the code, the names and the numbers of the English ones. All links resolve."""

import os
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH = {page: ROOT / "docs" / page.name for page in sorted(ROOT.glob("docs/ja/*.md"))}
ENGLISH[ROOT / "README.ja.md"] = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

LABELS = dict(re.findall(r"(?m)^  '(.+)': '(.+)',$", (ROOT / "daemon/progressd/webui/languages/ja.js").read_text()))

COMMENT = re.compile(r"(?m)(?:^|[ \t]+)(?:#|//) .*?(?=</script>|$)")  # in code: it may be translated
INLINE_CODE = re.compile(r"`([^`]+)`")
BOLD = re.compile(r"\*\*([^*]+)\*\*(?!:)")  # a label of the web page, if LABELS has it
LINK = re.compile(r"\[([^\]]*)\]\(([^()\s]+)\)")
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
ITEM = re.compile(r"(?:[-*]|\d+\.) ")


@cache
def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the kind and the text of each heading, paragraph, list item, table and block of code."""
    found = list[tuple[str, str]]()
    kind, lines = "", list[str]()
    for line in [*page.read_text().splitlines(), ""]:
        text = line.strip()
        if kind.startswith("code") and text != "```":
            lines.append(line)
            continue
        heading = re.match("#+ ", line)
        begins = not text or heading or text.startswith(("```", "<!--")) or ITEM.match(text)
        if kind and (begins or (kind == "table") != text.startswith("|")):
            found.append((f"table of {len(lines)} lines" if kind == "table" else kind, "\n".join(lines)))
            is_end_of_code = kind.startswith("code")
            kind, lines = "", []
            if is_end_of_code:
                continue
        if text.startswith("```"):
            kind = f"code {text}"
        elif heading:
            found.append((f"heading {heading[0]}", text))
        elif text and not text.startswith("<!--"):
            kind = kind or ("table" if text.startswith("|") else "item" if ITEM.match(text) else "paragraph")
            lines.append(text)
    return found


@cache
def prose(page: Path) -> str:
    return "\n".join(text for kind, text in blocks(page) if not kind.startswith("code"))


def names(text: str) -> set[str]:
    return {" ".join(name.split()) for name in INLINE_CODE.findall(text)}


def numbers(text: str) -> set[str]:
    return set(NUMBER.findall(LINK.sub(r"\1", INLINE_CODE.sub("", text))))


def links(page: Path) -> list[str]:
    return [target for _, target in LINK.findall(INLINE_CODE.sub("", prose(page)))]


@cache
def anchors(page: Path) -> list[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    found = list[str]()
    for kind, text in blocks(page):
        if kind.startswith("heading"):
            words = re.sub(r"[^\w\- ]", "", text.lstrip("# ").lower()).replace(" ", "-")
            count = found.count(words)
            found.append(f"{words}-{count}" if count else words)
    return found


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("japanese", ENGLISH, ids=name)
def test_a_translation_matches_its_page(japanese: Path) -> None:
    english = ENGLISH[japanese]
    todo = f"Change {name(japanese)} as {name(english)} was changed, or the other way round."
    for (kind, text), (kind_ja, text_ja) in zip(blocks(english), blocks(japanese), strict=False):
        where = f"\n{kind}\n{text}\n\n{kind_ja}\n{text_ja}"
        assert kind == kind_ja, f"{todo} They differ in structure:{where}"
        if kind.startswith("code"):
            assert COMMENT.sub("", text) == COMMENT.sub("", text_ja), f"{todo} They differ in code:{where}"
        else:
            assert names(text) == names(text_ja), f"{todo} They differ in inline code:{where}"
            labels = [LABELS[label] for label in BOLD.findall(text) if label in LABELS]
            assert all(label in text_ja for label in labels), f"{todo} The page says {labels}:{where}"
            assert numbers(text) <= numbers(text_ja), f"{todo} The translation lacks numbers:{where}"
    assert len(blocks(english)) == len(blocks(japanese)), f"{todo} One of them is longer."


@pytest.mark.parametrize("japanese", ENGLISH, ids=name)
def test_each_language_links_to_its_own_pages_and_to_the_other_language(japanese: Path) -> None:
    english = ENGLISH[japanese]
    for page, other, language in ((english, japanese, "日本語"), (japanese, english, "English")):
        link = f"[{language}]({os.path.relpath(other, page.parent)})"
        assert page.read_text().splitlines()[2] == link, f"The third line of {name(page)} has to be {link}."
    linked = [(japanese.parent / target.partition("#")[0]).resolve() for target in links(japanese)[1:]]
    translated = {name(page) for page in linked if page in ENGLISH.values()}
    assert not translated, f"Link from {name(japanese)} to the translations of these pages."


def test_all_links_resolve() -> None:
    wrong = list[str]()
    for page in PAGES:
        for target in links(page):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            if "://" not in target and (not linked.exists() or (anchor and anchor not in anchors(linked))):
                wrong.append(f"{name(page)}: {target}")
    assert not wrong, "Correct these links: there is no such file or heading."
