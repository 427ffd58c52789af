"""The language of the command line: that of the environment, as gettext chooses it. English text is its own key.

English costs nothing: a translation is imported when a text is needed in another language.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from importlib import import_module
from typing import TextIO

LANGUAGES = frozenset({"en", "ja"})
FORMS = " | "  # between the singular and the plural

_language = ""  # "": not chosen yet
_texts: Mapping[str, str] = {}


def language_of(environ: Mapping[str, str]) -> str:
    """Return the language for an environment, as gettext does. The locale itself need not be installed."""
    locale = environ.get("LC_ALL") or environ.get("LC_MESSAGES") or environ.get("LANG") or "C"
    if locale.partition(".")[0] in ("C", "POSIX") and not (locale != "C" and environ.get("LANGUAGE")):
        return "en"
    for tag in [*environ.get("LANGUAGE", "").split(":"), locale]:
        language = tag.replace("-", "_").partition("_")[0].partition(".")[0].lower()
        if language in LANGUAGES:
            return language
    return "en"


def current() -> str:
    """Return the language in use."""
    if not _language:
        use(language_of(os.environ))
    return _language


def use(language: str) -> None:
    """Use a language from now on."""
    global _language, _texts
    _language = language
    _texts = {} if language == "en" else import_module(f"progressd.languages.{language}").TEXTS


@contextmanager
def english() -> Iterator[None]:
    """Use English within a `with` block, for output that programs read."""
    before = current()
    use("en")
    try:
        yield
    finally:
        use(before)


def for_reader(stream: TextIO | None) -> AbstractContextManager[None]:
    """Use English within a `with` block if a program may read the stream, because it is no terminal."""
    return nullcontext() if stream is not None and stream.isatty() else english()


def t(text: str, /, **values: object) -> str:
    """Return a text in the language in use, with values for its `{names}`.

    Two forms are separated: `{n} page | {n} pages`; `n` chooses one. Japanese has one form.
    """
    current()
    text = _texts.get(text, text)
    if "n" in values and FORMS in text:
        one, many = text.split(FORMS)
        text = one if values["n"] == 1 else many
    return text.format_map(values) if values else text


def later(text: str) -> str:
    """Mark a text that is translated where it is used."""
    return text


def sentence(given: str, code: str = "") -> str:
    """Return a sentence of the daemon or the client in the language in use. `code`: that of a REST error."""
    return given if current() == "en" else _translated(_language, given, code)


@lru_cache(maxsize=1000)
def _translated(language: str, given: str, code: str) -> str:
    from progressd.languages.translation import translation

    return translation(language).sentence(given, code)
