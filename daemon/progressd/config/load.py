"""Load the settings from flags, environment and file into one frozen object."""

import ipaddress
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, get_type_hints

import msgspec
from msgspec import Struct

from progressd.config.fields import Setting, declared
from progressd.config.settings import BUILT_IN_PIPELINES, NETWORKS, Settings
from progressd.core.errors import SettingsError, meant
from progressd.core.pipeline import Option, Pipeline
from progressd.system.fs import read_regular

DEFAULT_FILE: Final = Path("/etc/progressd/progressd.toml")
OTHER_VARIABLES: Final = frozenset(
    f"PROGRESSD_{name}" for name in ("URL", "KEY", "KEY_FILE", "JOB_ID", "RUNNER", "SOCKET")
)
MAX_SOCKET_PATH: Final = 107  # bytes, unix(7)

Origins = Mapping[str, str]

_T = TypeVar("_T")


class _Given(NamedTuple):
    raw: object
    origin: str
    text: bool = False


def load(
    config_path: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    *,
    again: bool = False,
    default_file: Path = DEFAULT_FILE,
) -> tuple[Settings, Origins]:
    """Return the settings in force, and the origin of each by key.

    Flags override the environment, which overrides the file. Raises SettingsError for unknown settings and invalid
    values.

    Args:
        config_path: A file that must exist. None: `default_file`, if it exists.
        flags: Values by key ("server.port"); None for flags that were not given.
        again: The daemon is running, so a file that blocks, such as a pipe, is rejected.
    """
    path, table = _read(config_path or default_file, required=config_path is not None, again=again)
    settings = list(declared(Settings))
    given = {
        **dict(_from_file(settings, table, f"file {path}")),
        **dict(_from_environment(settings, environ)),
        **dict(_from_flags(settings, flags)),
    }
    values = {key: _value(setting, given[key]) for setting in settings if (key := setting.key) in given}
    for key, default in _computed(environ, values):
        values.setdefault(key, default)
    origins = {setting.key: given[setting.key].origin if setting.key in given else "default" for setting in settings}
    pipelines, pipeline_origins = _pipelines(table.get("pipelines", {}), f"file {path}")
    found = _build(Settings, values, pipelines=pipelines)
    _check(found, origins)
    return found, {**origins, **pipeline_origins}


def _read(path: Path, *, required: bool, again: bool) -> tuple[Path, dict[str, Any]]:
    try:
        text = read_regular(path) if again else path.read_bytes()
        table = tomllib.loads(text.decode())
        repr(table)  # raises ValueError for integers too long to print
        return path, table
    except FileNotFoundError:
        if not required:
            return path, {}
        raise SettingsError(f"there is no config file {path}") from None
    except OSError as error:
        raise SettingsError(f"cannot read the config file {path}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise SettingsError(f"the config file {path} is not TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"the config file {path} is nested too deeply") from None


def _from_file(settings: Iterable[Setting], table: Mapping[str, Any], origin: str) -> Iterator[tuple[str, _Given]]:
    known = {setting.key for setting in settings}
    sections = {key.partition(".")[0] for key in known if "." in key}
    for name, value in table.items():
        if name == "pipelines":
            continue
        if name in sections and not isinstance(value, dict):
            raise SettingsError(f"{name} = {value!r}, from {origin}: expected a section, [{name}]")
        inner = {f"{name}.{key}": item for key, item in value.items()} if name in sections else {name: value}
        for key, item in inner.items():
            if key not in known:
                raise SettingsError(f"unknown setting {key}, from {origin}{meant(key, known | sections)}")
            yield key, _Given(item, origin)


def _from_environment(settings: Iterable[Setting], environ: Mapping[str, str]) -> Iterator[tuple[str, _Given]]:
    keys = {setting.variable: setting.key for setting in settings}
    for variable, text in environ.items():
        if variable in keys:
            yield keys[variable], _Given(text, f"environment {variable}", text=True)
        elif variable.startswith("PROGRESSD_PIPELINES_"):
            raise SettingsError(f"unknown setting {variable} in the environment: pipelines are set in the config file")
        elif variable.startswith("PROGRESSD_") and variable not in OTHER_VARIABLES:
            raise SettingsError(f"unknown setting {variable} in the environment{meant(variable, keys)}")


def _from_flags(settings: Iterable[Setting], flags: Mapping[str, object]) -> Iterator[tuple[str, _Given]]:
    names = {setting.key: setting.extra.get("flag", setting.key) for setting in settings}
    for key, value in flags.items():
        if key not in names:
            raise SettingsError(f"unknown setting {key}{meant(key, names)}")
        if value is not None:
            yield key, _Given(value, f"flag {names[key]}", text=isinstance(value, str))


def _value(setting: Setting, given: _Given) -> object:
    try:
        value = setting.read(given.raw, text=given.text)
    except ValueError:
        raw = repr(given.raw)
        raise SettingsError(f"{setting.key} = {raw[:100]}, from {given.origin}: expected {setting.expected}") from None
    return value.absolute() if isinstance(value, Path) else value


def _computed(environ: Mapping[str, str], values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the defaults that depend on the host. If systemd passes several directories, use the first."""
    state = Path(environ.get("STATE_DIRECTORY", "").split(":")[0] or "progressd-data").absolute()
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    yield "state_dir", state
    yield "ingest.socket", Path(runtime or str(values.get("state_dir", state))).absolute() / "ingest.sock"
    yield "auth.keys_file", Path(str(values.get("state_dir", state))) / "keys.json"
    yield "auth.token_secret_file", Path(str(values.get("state_dir", state))) / "token-secret"
    # the CPUs available to this process, as limited by CPUAffinity= in a unit
    yield "runner.concurrency", len(os.sched_getaffinity(0))


def _build(struct: type[Any], values: Mapping[str, object], prefix: str = "", **more: object) -> Any:
    """Build a struct of settings and its nested structs from values by key."""
    arguments = dict(more)
    for name, hint in get_type_hints(struct).items():
        key = prefix + name
        if isinstance(hint, type) and issubclass(hint, Struct):
            arguments[name] = _build(hint, values, f"{key}.")
        elif key in values:
            arguments[name] = values[key]
    return struct(**arguments)


def _pipelines(table: object, origin: str) -> tuple[dict[str, Pipeline], dict[str, str]]:
    """Return the pipelines of the file, merged into the built-in ones key by key."""
    if not isinstance(table, dict) or not all(isinstance(item, dict) for item in table.values()):
        raise SettingsError(f"pipelines, from {origin}: expected a table for each pipeline, [pipelines.NAME]")
    built_in: dict[str, Any] = {name: msgspec.to_builtins(pipeline) for name, pipeline in BUILT_IN_PIPELINES.items()}
    pipelines, origins = {}, {}
    for name in [*built_in, *(name for name in table if name not in built_in)]:
        merged = _merged(built_in.get(name, {}), table.get(name, {}))
        pipelines[name] = _pipeline(name, merged, origin)
        origins[f"pipelines.{name}"] = origin if name in table else "default"
    return pipelines, origins


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(under := below.get(key), dict):
            merged[key] = _merged(under, value)
    return merged


def _pipeline(name: str, table: dict[str, Any], origin: str) -> Pipeline:
    key = f"pipelines.{name}"
    for setting in declared(Pipeline, f"{key}."):
        field = setting.key.removeprefix(f"{key}.")
        if setting.unit is not None and field in table:
            table = {**table, field: _value(setting, _Given(table[field], origin))}
    options = table.get("options", {})
    for option in options if isinstance(options, dict) else ():
        _converted(Option, f"{key}.options.{option}", options[option], origin)
    return _converted(Pipeline, key, table, origin)


def _converted(struct: type[_T], key: str, table: object, origin: str) -> _T:
    """Convert a table of the file; `key` is its name in the file."""
    try:
        return msgspec.convert(table, struct)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        place = key + place.rstrip("`")
        raise SettingsError(f"{place}, from {origin}: {reason[0].lower()}{reason[1:]}") from None


def _check(settings: Settings, origins: Origins) -> None:
    """Raise SettingsError for values that contradict each other."""
    limits, socket = settings.limits, settings.ingest.socket
    timeout_origin = origins["limits.connection_timeout"]
    if limits.connection_timeout <= limits.heartbeat_interval:
        raise SettingsError(
            f"limits.connection_timeout = {limits.connection_timeout:g} s, from {timeout_origin}: "
            f"expected more than limits.heartbeat_interval, {limits.heartbeat_interval:g} s, "
            "or watchers are disconnected before their first ping"
        )
    for key, value in (
        ("server.trusted_proxies", settings.server.trusted_proxies),
        ("limits.exempt_addresses", settings.limits.exempt_addresses),
    ):
        try:
            list(map(ipaddress.ip_network, value))
        except ValueError as error:
            raise SettingsError(f"{key}, from {origins[key]}: {error}; expected {NETWORKS}") from None
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
        raise SettingsError(
            f"ingest.socket = {socket}, from {origins['ingest.socket']}: expected a path of at most "
            f"{MAX_SOCKET_PATH} bytes, the system's limit for a Unix socket"
        )
