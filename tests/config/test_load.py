import contextlib
import os
import re
import stat
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.config import load as config
from progressd.config.fields import declared, toml
from progressd.config.settings import BUILT_IN_PIPELINES, Settings
from progressd.core.errors import SettingsError

Write = Callable[[str], Path]


load = partial(config.load, default_file=Path("/no/such/file"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> Path:
        path = tmp_path / "progressd.toml"
        path.write_text(text)
        return path

    return write_file


def test_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings, origins = load(None, {}, {})
    assert (settings.server.host, settings.server.port, settings.limits.max_connections) == ("127.0.0.1", 8080, 100)
    assert settings.state_dir == tmp_path / "progressd-data"
    assert settings.ingest.socket == tmp_path / "progressd-data/ingest.sock"
    assert settings.runner.concurrency == len(os.sched_getaffinity(0))
    assert settings.pipelines == BUILT_IN_PIPELINES
    assert set(origins.values()) == {"default"}
    assert origins.keys() == {setting.key for setting in declared(Settings)} | {"pipelines.pdf"}


def test_the_order_of_precedence(write: Write) -> None:
    path = write("[server]\nhost = 'file'\nport = 1\n[limits]\nmax_connections = 1\n")
    environ = {"PROGRESSD_SERVER_PORT": "2", "PROGRESSD_SERVER_HOST": "environment"}
    settings, origins = load(path, environ, {"server.port": 3, "log.level": None})
    assert (settings.server.port, settings.server.host, settings.limits.max_connections) == (3, "environment", 1)
    assert settings.log.level == "info"
    assert {key: origins[key] for key in ("server.port", "server.host", "limits.max_connections", "log.level")} == {
        "server.port": "flag --port",
        "server.host": "environment PROGRESSD_SERVER_HOST",
        "limits.max_connections": f"file {path}",
        "log.level": "default",
    }


def test_every_setting_can_come_from_the_environment(tmp_path: Path) -> None:
    examples = {
        "state_dir": str(tmp_path),
        "server.allowed_origins": "https://a.example, http://b.example:8080",
        "ingest.socket": "/run/x.sock",
        "ingest.socket_mode": "0600",
        "store.synchronous": "OFF",
        "log.level": "debug",
        "log.format": "json",
        "server.base_path": "/progress/",
        "server.host": "::1",
        "server.allow_unauthenticated": "true",
        "auth.required": "true",
        "server.trusted_proxies": "10.0.0.0/8, ::1",
        "limits.exempt_addresses": "127.0.0.1",
        "auth.keys_file": "/srv/keys.json",
        "auth.token_secret_file": "/srv/secret",
        "shutdown.wait_for_jobs": "false",
        "limits.heartbeat_interval": "1s",
        "log.max_bytes_per_job": "2MiB",
    }
    environ = {setting.variable: examples.get(setting.key, "8192") for setting in declared(Settings)}
    settings, origins = load(None, environ, {})
    assert {origin.partition(" ")[0] for key, origin in origins.items() if key != "pipelines.pdf"} == {"environment"}
    assert settings.server.allowed_origins == ("https://a.example", "http://b.example:8080")
    assert settings.ingest.socket_mode == "0600"
    assert settings.shutdown.wait_for_jobs is False


def test_values_may_have_units(write: Write) -> None:
    path = write('[limits]\nhandshake_timeout = "1.5min"\nmax_upload_bytes = "2GiB"\nheartbeat_interval = 5\n')
    settings, _ = load(path, {"PROGRESSD_STORE_RETENTION": "7d"}, {})
    assert settings.limits.handshake_timeout == 90
    assert settings.limits.max_upload_bytes == 2 << 30
    assert settings.limits.heartbeat_interval == 5
    assert settings.store.retention == 7 * 86400


def test_systemd_or_the_state_directory_names_directories() -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/progressd:/var/lib/other", "RUNTIME_DIRECTORY": "/run/progressd"}
    settings, _ = load(None, environ, {})
    assert settings.state_dir == Path("/var/lib/progressd")
    assert settings.ingest.socket == Path("/run/progressd/ingest.sock")
    assert load(None, {}, {"state_dir": "/srv/jobs"})[0].ingest.socket == Path("/srv/jobs/ingest.sock")


def test_the_default_file_is_read_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "etc.toml").write_text("[server]\nport = 7\n")
    settings, origins = load(None, {}, {}, default_file=tmp_path / "etc.toml")
    assert settings.server.port == 7
    assert origins["server.port"] == f"file {tmp_path}/etc.toml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[limits]\nmax_connections = 0",
            "limits.max_connections = 0, from file {}: expected an integer of at least 1",
        ),
        ("[limits]\nmax_connections = true", "limits.max_connections = True, from file {}: expected an integer of"),
        ("[server]\nport = 65536", "server.port = 65536, from file {}: expected an integer from 0 to 65535"),
        ("[server]\nhost = ''", "server.host = '', from file {}: expected non-empty text"),
        ("[server]\nallowed_origins = ['https://x/']", "expected a list of origins without a path, such as"),
        (
            "[limits]\nhandshake_timeout = inf",
            "handshake_timeout = inf, from file {}: expected a duration of more than",
        ),
        (
            "[limits]\nhandshake_timeout = 0",
            "handshake_timeout = 0, from file {}: expected a duration of more than 0 s",
        ),
        ("[store]\nretention = '900000d'", "retention = '900000d', from file {}: expected a duration of"),
        (
            "[store]\nretention = 1e300",
            "store.retention = 1e+300, from file {}: expected a duration of more than 0 s, up to",
        ),
        ("[auth]\ntoken_lifetime = 1e12", "expected a duration of more than 0 s, up to 36500d, such as 30"),
        (
            "[pipelines.pdf]\ntimeout = 1e300",
            "pipelines.pdf.timeout = 1e+300, from file {}: expected a duration of more",
        ),
        (
            "[limits]\nsend_buffer_bytes = '1kB'",
            "send_buffer_bytes = '1kB', from file {}: expected a size of at least 4096 bytes",
        ),
        ("[limits]\nmax_stored_bytes = '1e30GiB'", "expected a size of at least 0 bytes, up to 8388608GiB, such as"),
        ("[ingest]\nsocket_mode = '1777'", "expected an octal file mode in quotes"),
        ("[ingest]\nsocket_mode = 660", "socket_mode = 660, from file {}: expected an octal file mode in quotes"),
        ("[store]\nsynchronous = 'full'", "expected one of FULL, NORMAL, OFF"),
        ("[shutdown]\nwait_for_jobs = 'yes'", "wait_for_jobs = 'yes', from file {}: expected true or false"),
        ("state_dir = ''", "state_dir = '', from file {}: expected a path"),
        ("limits = 3", "limits = 3, from file {}: expected a section, [limits]"),
        ("[limit]\nmax_connections = 1", "unknown setting limit, from file {}; did you mean limits?"),
        (
            "[limits]\nmax_conections = 1",
            "unknown setting limits.max_conections, from file {}; did you mean limits.max_",
        ),
        ("x = ", "the config file {} is not TOML: Invalid value (at end of document)"),
        ("x = " + "9" * 5000, "the config file {} is not TOML: Exceeds the limit (4300 digits)"),
        ("x = 0x" + "f" * 5000, "the config file {} is not TOML: Exceeds the limit (4300 digits)"),
        ("x = " + "[" * 2000, "the config file {} is nested too deeply"),
        ("[limits]\nconnection_timeout = 30", "expected more than limits.heartbeat_interval, 30 s"),
        ("[pipelines]\npdf = 1", "pipelines, from file {}: expected a table for each pipeline, [pipelines.NAME]"),
        ("[pipelines.x]", "pipelines.x, from file {}: object missing required field `command`"),
        ("[pipelines.x]\ncommand = 'ls'", "pipelines.x.command, from file {}: expected `array`, got `str`"),
        ("[pipelines.x]\ncommand = ['ls', 3]", "pipelines.x.command[1], from file {}: expected `str`, got `int`"),
        (
            "[pipelines.x]\ncommand = ['ls', '{ouput}']",
            "command: {{ouput}} is not one of the placeholders {{python}}, ",
        ),
        ("[pipelines.pdf]\ntimeout = 'soon'", "pipelines.pdf.timeout = 'soon', from file {}: expected a duration"),
        ("[pipelines.pdf]\nacept = []", "pipelines.pdf, from file {}: object contains unknown field `acept`"),
        ("[pipelines.pdf.options]\ndpi = 3", "pipelines.pdf.options.dpi, from file {}: expected `object`, got `int`"),
        (
            "[pipelines.pdf.options.dpi]\ndefault = 3",
            "options.dpi, from file {}: default 3 is not an integer from 50 to",
        ),
        ("[pipelines.pdf]\nprogress_pattern = '('", "progress_pattern: '(' is not a regular expression: missing )"),
    ],
)
def test_an_invalid_file_is_rejected(write: Write, text: str, said: str) -> None:
    path = write(text)
    with pytest.raises(SettingsError) as caught:
        load(path, {}, {})
    assert said.format(path) in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("PROGRESSD_SERVER_PORT", "http", "server.port = 'http', from environment PROGRESSD_SERVER_PORT: expected"),
        ("PROGRESSD_SERVER_PRT", "1", "unknown setting PROGRESSD_SERVER_PRT in the environment; did you mean "),
        ("PROGRESSD_PIPELINES_PDF_OUTPUT", "x", "in the environment: pipelines are set in the config file"),
        ("PROGRESSD_STATE_DIR", "/" + "x" * 107, "expected a path of at most 107 bytes"),
    ],
)  # fmt: skip
def test_an_invalid_environment_is_rejected(variable: str, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        load(None, {variable: text}, {})


def test_an_invalid_flag_is_rejected() -> None:
    with pytest.raises(SettingsError, match=r"^log\.level = 'loud', from flag --log-level: expected one of debug, "):
        load(None, {}, {"log.level": "loud"})


def test_client_variables_are_not_settings() -> None:
    environ = {"PROGRESSD_URL": "x", "PROGRESSD_JOB_ID": "x", "PROGRESSD_SOCKET": "x", "_PROGRESSD_COMPLETE": "x"}
    assert load(None, environ, {})[0] == load(None, {}, {})[0]


@pytest.mark.parametrize("again", [False, True])
def test_an_explicit_file_must_be_readable(tmp_path: Path, again: bool) -> None:
    with pytest.raises(SettingsError, match=r"^there is no config file "):
        load(tmp_path / "none.toml", {}, {}, again=again)
    with pytest.raises(SettingsError, match=r"^cannot read .*: Is a directory$"):
        load(tmp_path, {}, {}, again=again)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not TOML"):
        load(tmp_path / "binary.toml", {}, {}, again=again)
    assert load(None, {}, {}, again=again)[0] == load(None, {}, {})[0]


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK])
def test_a_reload_reads_only_regular_files(tmp_path: Path, kind: int) -> None:
    os.mknod(tmp_path / "config.toml", kind | 0o600)
    with pytest.raises(SettingsError, match=r"^cannot read .*: (it is not a regular file|No such device or address)$"):
        load(tmp_path / "config.toml", {}, {}, again=True)


def test_a_pipeline_overrides_the_built_in_one(write: Write) -> None:
    path = write("[pipelines.pdf]\ntimeout = '2h'\n[pipelines.pdf.options.dpi]\ndefault = 600\n")
    settings, origins = load(path, {}, {})
    pdf = settings.pipelines["pdf"]
    assert pdf.command == BUILT_IN_PIPELINES["pdf"].command
    assert pdf.timeout == 7200
    assert (pdf.options["dpi"].default, pdf.options["dpi"].maximum) == (600, 2400)
    assert pdf.options["ocr"] == BUILT_IN_PIPELINES["pdf"].options["ocr"]
    assert origins["pipelines.pdf"] == f"file {path}"


def test_a_pipeline_is_added_to_the_built_in_one(write: Write) -> None:
    settings, origins = load(write("[pipelines.copy]\ncommand = ['cp', '{input}', '{output}']\n"), {}, {})
    assert list(settings.pipelines) == ["pdf", "copy"]
    assert settings.pipelines["copy"].accept == ("application/pdf",)
    assert origins["pipelines.pdf"] == "default"


@given(st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text()))
def test_printed_toml_is_read_back(value: object) -> None:
    text = toml(value)
    assert tomllib.loads(f"key = {text}")["key"] == value


@given(st.sampled_from([setting.variable for setting in declared(Settings)]), st.text(max_size=30))
def test_any_environment_is_read_or_rejected(variable: str, text: str) -> None:
    with contextlib.suppress(SettingsError):
        assert load(None, {variable: text}, {})
