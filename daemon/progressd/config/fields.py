"""A setting: its key, type, default and description from the struct that declares it, and its text in TOML."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from progressd.config import units

_READERS: Final = {"seconds": units.seconds, "bytes": units.size}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class Setting(NamedTuple):
    """A field of a struct. The `extra` of its Meta has `unit` (seconds, bytes), `flag` and `default`."""

    key: str
    type: Any
    meta: Meta
    default: object  # NODEFAULT if computed

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"PROGRESSD_{self.key.upper().replace('.', '_')}"

    @property
    def extra(self) -> Mapping[str, Any]:
        """The `extra` of the Meta."""
        return self.meta.extra or {}

    @property
    def unit(self) -> str | None:
        """The unit of the number, if the value may be text with a unit."""
        return self.extra.get("unit")

    def read(self, raw: object, *, text: bool) -> object:
        """Convert a raw value; `text`: every value of its source is text. Raises ValueError."""
        if self.unit is not None and isinstance(raw, str):
            raw = _READERS[self.unit](raw)
        elif text and isinstance(raw, str) and get_origin(self.base) is tuple:
            raw = [part.strip() for part in raw.split(",") if part.strip()]
        value = msgspec.convert(raw, self.type, strict=not text, dec_hook=_to_path)
        largest = {"seconds": units.MAX_SECONDS, "bytes": units.MAX_BYTES}.get(self.unit or "", math.inf)
        if isinstance(value, int | float) and not value <= largest:
            raise ValueError(f"{value} is too large")
        return value

    @property
    def expected(self) -> str:
        """The expected value, as the end of a sentence."""
        match self.unit:
            case "seconds":
                longest = units.seconds_text(units.MAX_SECONDS)
                return f'a duration of more than 0 s, up to {longest}, such as 30, "30s" or "5min"'
            case "bytes":
                largest = units.size_text(units.MAX_BYTES)
                return f'a size of at least {self.meta.ge} bytes, up to {largest}, such as 65536 or "64KiB"'
        base = self.base
        if get_origin(base) is Literal:
            return f"one of {', '.join(map(str, get_args(base)))}"
        if "expected" in self.extra:
            return str(self.extra["expected"])
        if base is int:
            least, most = self.meta.ge, self.meta.le
            return f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
        return {bool: "true or false", str: "non-empty text", Path: "a path"}[base]

    def shown(self, value: object) -> str:
        """Return the value in TOML."""
        match self.unit, value:
            case "seconds", int() | float():
                return toml(units.seconds_text(value))
            case "bytes", int():
                return toml(units.size_text(value))
        return toml(value)

    @property
    def base(self) -> Any:
        """The type without its annotations."""
        return get_args(self.type)[0] if get_origin(self.type) is Annotated else self.type


def declared(struct: type[Struct], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a struct, then those of nested structs."""
    hints = get_type_hints(struct, include_extras=True)
    sections = []
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Struct):
            sections.append((hint, f"{prefix}{field.name}."))
            continue
        meta = next((part for part in get_args(hint)[1:] if isinstance(part, Meta)), None)
        if meta is not None:
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            yield Setting(prefix + field.name, hint, meta, default)
    for section, prefixed in sections:
        yield from declared(section, prefixed)


def toml(value: object) -> str:
    """Return a value in TOML, on one line. Raises TypeError for types that TOML lacks."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            # a TOML string is a JSON string without surrogate pairs, and with DEL escaped
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            pairs = ", ".join(f"{toml_key(key)} = {toml(item)}" for key, item in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
    raise TypeError(f"TOML has no type for {type(value).__name__}")


def toml_key(key: str) -> str:
    """Return a key in TOML, quoted if necessary."""
    return key if _BARE_KEY.fullmatch(key) else toml(key)


def _to_path(kind: type, raw: object) -> object:
    if kind is Path and isinstance(raw, str | Path) and str(raw) and "\0" not in str(raw):
        try:
            return Path(raw).expanduser()
        except RuntimeError:  # ~user with an unknown user
            raise ValueError("not a path") from None
    raise ValueError("not a path")
