"""Translate sentences that another program wrote in English: the daemon, or the Python client.

A translation belongs to a template, such as `no job {id}`. The values of a sentence are found in it, and put into the
translation. So REST, logs and databases stay English, and each reader may have another language. The page does the same
in `webui/text.js`, with the same file.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

DIRECTORY: Final = Path(__file__).parent.parent / "webui/languages"
MAX_LENGTH: Final = 2000  # characters of a sentence; a longer one stays English
TRANSLATED: Final = ("reason", "status", "old", "new")  # placeholders for a sentence or a word that is translated too

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Sentences(msgspec.Struct, frozen=True):
    """The file of a language: translations by English template, and sentences for the codes of REST errors."""

    sentences: dict[str, str]
    codes: dict[str, str]


class Template(NamedTuple):
    """A template, its translation, and the text around its placeholders."""

    pattern: str
    translation: str
    literals: tuple[str, ...]

    def values(self, sentence: str) -> dict[str, str] | None:
        """Return the values of a sentence; None if it has another template."""
        if not all(literal in sentence for literal in self.literals):
            return None
        found = re.fullmatch(self.pattern, sentence, re.DOTALL)
        return None if found is None else found.groupdict()


class Translation:
    """The sentences of a language."""

    def __init__(self, texts: Mapping[str, str], codes: Mapping[str, str] = {}) -> None:
        self.texts = texts
        self.codes = codes
        self._templates = sorted(map(_template, texts, texts.values()), key=_order)

    def sentence(self, english: str, code: str = "") -> str:
        """Return a sentence in this language. If it is unknown, put a sentence for the code of its error before it."""
        if (found := self._find(english)) is not None:
            return found
        return f"{self.codes[code]}（{english}）" if code in self.codes else english

    def _find(self, english: str) -> str | None:
        if (exact := self.texts.get(english)) is not None:
            return exact
        if len(english) <= MAX_LENGTH:
            for template in self._templates:
                if values := template.values(english):
                    values.update((name, self.sentence(values[name])) for name in TRANSLATED if name in values)
                    return template.translation.format_map(values)
        return None


@lru_cache
def translation(language: str) -> Translation:
    """Return the sentences of the daemon and of its Python client in a language other than English."""
    given = msgspec.json.decode((DIRECTORY / f"sentences.{language}.json").read_bytes(), type=Sentences)
    ours: Mapping[str, str] = import_module(f"progressd.languages.{language}").SENTENCES
    return Translation({**given.sentences, **ours}, given.codes)


def _template(english: str, translated: str) -> Template:
    parts = _PLACEHOLDER.split(english)
    return Template("".join(_pattern(parts)), translated, tuple(filter(None, parts[::2])))


def _order(template: Template) -> tuple[bool, int]:
    """Sort templates that begin with a value last, then those with less text: the others fit better."""
    return template.pattern.startswith("(?P<"), -sum(map(len, template.literals))


def _pattern(parts: list[str]) -> Iterator[str]:
    for number, part in enumerate(parts):
        yield f"(?P<{part}>.+?)" if number % 2 else re.escape(part)
