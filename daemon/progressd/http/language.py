"""The language of what the daemon renders for people: pages of errors and badges."""

from typing import Final

from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from progressd.languages.translation import Translation, translation

LANGUAGES: Final = ("en", "ja")  # the first one is for browsers that want none of them
MAX_HEADER: Final = 200  # characters
ENGLISH: Final = Translation({})


def preferred(accept_language: str) -> tuple[str, Translation]:
    """Return the language that a browser prefers (RFC 9110 §12.5.4), and its translation."""
    given = parse_accept_header(accept_language[:MAX_HEADER], LanguageAccept)  # best first
    wanted = (tag.partition("-")[0].lower() for tag, quality in given if quality > 0)
    language = next((tag for tag in wanted if tag in LANGUAGES), LANGUAGES[0])
    return language, ENGLISH if language == "en" else translation(language)
