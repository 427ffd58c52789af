"""Print the settings: a documented sample file, the reference page, and those in force.

`python -m progressd.config.docs` prints the page, docs/settings.md.
"""

import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final, get_type_hints

import msgspec

from progressd.config.fields import Setting, declared, toml, toml_key
from progressd.config.load import DEFAULT_FILE, Origins
from progressd.config.settings import BUILT_IN_PIPELINES, Settings
from progressd.core.pipeline import Option, Pipeline

_INTRODUCTION: Final = f"""\
# Settings

Every setting has a default, so progressd starts without a config file. The value of a setting is the first of these:

1. the flag of `progressd serve`, if the setting has one;
2. the environment variable;
3. the config file: `{DEFAULT_FILE}` if it exists, or the one given with `--config PATH`;
4. the default.

`progressd config` prints the settings in force and the source of each; `progressd config --sample` prints a
documented config file to start from. With an unknown setting or an invalid value the daemon does not start, and prints
an error. `systemctl reload progressd` applies changes, except those that [need a restart](operations.md#install).

Durations are seconds, or text with a unit: `"500ms"`, `"30s"`, `"5min"`, `"2h"`, `"30d"`, up to `"36500d"`. Sizes are
bytes, or text with a unit: `"64KiB"`, `"500MiB"`, `"2GiB"` (powers of 1024), `"64kB"`, `"500MB"`, `"2GB"` (powers of
1000), up to `"8388608GiB"`. In an environment variable, the parts of a list are separated by commas.
"""

_PIPELINES: Final = """\
## `[pipelines.NAME]`

The command to run for a submitted file. Pipelines are set in the config file only. `pdf` is built in. A
`[pipelines.pdf]` table changes it key by key. This sets the default of its option `dpi` to 600:

```toml
[pipelines.pdf.options.dpi]
default = 600
```
"""

_OPTIONS: Final = """\
### `[pipelines.NAME.options.OPTION]`

The options that a client may set. Other options are rejected.
"""


def sample() -> str:
    """Return a config file that documents every setting and changes none."""
    lines = ["# progressd: every setting with its default. Remove a '#' to change one."]
    for section, settings in _sections():
        lines += ["", ""]
        if section:
            lines += [f"# {_about(section)}", f"[{section}]"]
        for setting in settings:
            lines += ["", *_comment(_described(setting)), f"# {_assignment(setting)}"]
    lines += ["", "", *_comment("The built-in pipeline; [pipelines.NAME] adds another.")]
    lines += [f"# {line}".rstrip() for line in _pipeline_lines("pdf", BUILT_IN_PIPELINES["pdf"])]
    return "\n".join(lines).replace("\n\n\n\n", "\n\n\n") + "\n"


def page() -> str:
    """Return the reference page, in Markdown."""
    parts = [_INTRODUCTION]
    for section, settings in _sections():
        heading = f"## `[{section}]`\n\n{_about(section)}" if section else "## At the top of the file"
        table = [f"{_row(setting)} {_elsewhere(setting)} |" for setting in settings]
        parts.append(
            "\n".join([heading, "", "| key | default | meaning | flag, environment |", "|---|---|---|---|", *table, ""])
        )
    for text, struct in ((_PIPELINES, Pipeline), (_OPTIONS, Option)):
        table = [_row(setting) for setting in declared(struct)]
        parts.append("\n".join([text, "| key | default | meaning |", "|---|---|---|", *table, ""]))
    built_in = "\n".join(_pipeline_lines("pdf", BUILT_IN_PIPELINES["pdf"]))
    parts.append(f"### The built-in pipeline\n\n```toml\n{built_in}\n```\n")
    return "\n".join(parts)


def in_force(settings: Settings, origins: Origins) -> str:
    """Return the settings as a config file, with the origin of each in a comment."""
    lines: list[str] = []
    for section, declarations in _sections():
        lines += ["", f"[{section}]"] if section else []
        for setting in declarations:
            value: object = settings
            for name in setting.key.split("."):
                value = getattr(value, name)
            assignment = f"{setting.key.rpartition('.')[2]} = {setting.shown(value)}"
            lines.append(f"{assignment:<42}  # {origins[setting.key]}")
    for name, pipeline in settings.pipelines.items():
        head, *rest = _pipeline_lines(name, pipeline)
        lines += ["", f"{head:<42}  # {origins[f'pipelines.{name}']}", *rest]
    return "\n".join(lines) + "\n"


def _sections() -> Iterator[tuple[str, Iterable[Setting]]]:
    for section, settings in groupby(declared(Settings), lambda setting: setting.key.rpartition(".")[0]):
        yield section, list(settings)


def _about(section: str) -> str:
    return str(get_type_hints(Settings)[section].__doc__).splitlines()[0]


def _described(setting: Setting) -> str:
    default = f" Default: {setting.extra['default']}." if "default" in setting.extra else ""
    return f"{setting.meta.description}{default}".replace("`", "")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ")


def _assignment(setting: Setting) -> str:
    value = setting.extra["example"] if "default" in setting.extra else setting.default
    return f"{setting.key.rpartition('.')[2]} = {setting.shown(value)}"


def _default(setting: Setting) -> str:
    if "default" in setting.extra:
        return str(setting.extra["default"])
    if setting.default is msgspec.NODEFAULT:
        return "required"
    return "" if setting.default in (None, "", (), {}) else f"`{setting.shown(setting.default)}`"


def _elsewhere(setting: Setting) -> str:
    flag = f"`{setting.extra['flag']}`, " if "flag" in setting.extra else ""
    return f"{flag}`{setting.variable}`"


def _row(setting: Setting) -> str:
    meaning = str(setting.meta.description).replace("|", "\\|")
    return f"| `{setting.key.rpartition('.')[2]}` | {_default(setting)} | {meaning} |"


def _pipeline_lines(name: str, pipeline: Pipeline) -> list[str]:
    table = msgspec.to_builtins(pipeline)
    options = table.pop("options", {})
    path = f"pipelines.{toml_key(name)}"
    known = {setting.key: setting for setting in declared(Pipeline)}
    lines = [f"[{path}]", *(f"{toml_key(key)} = {known[key].shown(value)}" for key, value in table.items())]
    if options:
        lines += ["", f"[{path}.options]", *(f"{toml_key(key)} = {toml(value)}" for key, value in options.items())]
    return lines


if __name__ == "__main__":
    print(page(), end="")
