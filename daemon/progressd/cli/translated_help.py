"""Help and click's errors in another language than English. It is imported only for that.

click looks its texts up with gettext. They come from the same place as ours, not from a compiled catalogue (`.mo`),
which would need a build step.
"""

import gettext
import inspect
import re
from collections.abc import Iterator
from typing import Final

import click
from click import formatting
from rich.cells import cell_len

from progressd.cli.language import t

VERBATIM: Final = "\b"  # the first line of a paragraph that click does not wrap
# Words between which a line may break: each Japanese character is one, with the punctuation that belongs to it.
_WORD = re.compile(r"[ \n]+|[（「『(\[]*(?:[!-~]+|[^ \n])[ーっゃゅょッャュョ、。・）」』：)\]:,.]*")
_COLUMNS = re.compile(r"( {2,})")


def install() -> None:
    """Let click use our texts, and wrap lines in cells: a Japanese character takes two."""
    setattr(gettext, "dgettext", lambda _domain, text: t(text))  # noqa: B010, mypy knows no assignment to a function
    setattr(gettext, "dngettext", lambda _domain, one, many, n: t(one if n == 1 else many))  # noqa: B010
    setattr(formatting, "wrap_text", wrap)  # noqa: B010


def translate(command: click.Command, *, whole: bool = True) -> None:
    """Translate the help of a command. `whole`: not only its line in the list of all commands."""
    if command.help:
        first, *_ = _paragraphs(command.help)
        command.short_help = re.split(r"(?<=。)", t(first))[0]
    if not whole:
        return
    command.help = "\n\n".join(map(_translated, _paragraphs(command.help or "")))
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.help:
            parameter.help = t(parameter.help)
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            translate(subcommand)


def texts(command: click.Command) -> Iterator[str]:
    """Return the English texts of a command's help."""
    for paragraph in _paragraphs(command.help or ""):
        if paragraph.startswith(VERBATIM):
            yield from filter(_is_text, _cells(paragraph))
        else:
            yield paragraph
    yield from (each.help for each in command.params if isinstance(each, click.Option) and each.help)
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            yield from texts(subcommand)


def wrap(
    text: str,
    width: int = 78,
    initial_indent: str = "",
    subsequent_indent: str = "",
    preserve_paragraphs: bool = False,
) -> str:
    """Return text in lines of `width` cells, as click's `wrap_text` does."""
    if not preserve_paragraphs:
        return _wrapped(text, width, initial_indent, subsequent_indent)
    shown = list[str]()
    for paragraph in _paragraphs(text):
        if paragraph.startswith(VERBATIM):
            shown.append("\n".join(initial_indent + line for line in paragraph.splitlines()[1:]))
        else:
            shown.append(_wrapped(paragraph, width, initial_indent, subsequent_indent))
    return "\n\n".join(shown)


def _wrapped(text: str, width: int, first: str, following: str) -> str:
    lines, line = list[str](), first
    for word in _WORD.findall(text):
        if cell_len(line + word.rstrip()) > width and line.strip():
            lines.append(line.rstrip())
            line = following
        line += word if line.strip() or word.strip() else ""
    return "\n".join([*lines, line.rstrip()])


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a help text, each on one line unless it is verbatim."""
    given = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return [each if each.startswith(VERBATIM) else " ".join(each.split()) for each in given if each.strip()]


def _translated(paragraph: str) -> str:
    if paragraph.startswith(VERBATIM):
        return "\n".join("".join(map(t, _COLUMNS.split(line))) for line in paragraph.splitlines())
    return t(paragraph)


def _cells(paragraph: str) -> list[str]:
    return [cell for line in paragraph.splitlines()[1:] for cell in _COLUMNS.split(line)]


def _is_text(cell: str) -> bool:
    """Return whether this is text in an example, and no command."""
    return bool(re.match(r"[A-Za-z]", cell)) and not re.match(r"(progressd|script|eval|fish|bash,|zsh,)\b", cell)
