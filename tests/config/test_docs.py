import re
import tomllib
from pathlib import Path

from progressd.config import docs
from progressd.config.fields import declared
from progressd.config.load import load
from progressd.config.settings import BUILT_IN_PIPELINES, Settings

PAGE = Path(__file__).parents[2] / "docs/settings.md"


def test_the_reference_page_is_current() -> None:
    assert PAGE.read_text() == docs.page(), "python -m progressd.config.docs > docs/settings.md"


def test_the_sample_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sample.toml"
    path.write_text(docs.sample())
    assert load(path, {}, {})[0] == load(None, {}, {})[0]


def test_the_sample_file_has_every_setting(tmp_path: Path) -> None:
    path = tmp_path / "sample.toml"
    path.write_text(re.sub(r"(?m)^# (?=\w+ = |\[)", "", docs.sample()))
    _, origins = load(path, {}, {})
    assert set(origins.values()) == {f"file {path}"}
    given = tomllib.loads(path.read_text())
    computed = {setting.key for setting in declared(Settings) if "default" in setting.extra}
    for setting in declared(Settings):
        section, _, name = setting.key.rpartition(".")
        raw = given[section][name] if section else given[name]
        if setting.key not in computed:
            assert setting.read(raw, text=False) == setting.default
    assert computed == {"state_dir", "runner.concurrency", "ingest.socket", "auth.keys_file", "auth.token_secret_file"}


def test_printed_settings_are_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "progressd.toml"
    path.write_text('[pipelines."a b"]\ncommand = ["x"]\n[server]\nallowed_origins = ["http://x"]\n')
    settings, origins = load(path, {"PROGRESSD_LIMITS_SEND_BUFFER_BYTES": "2MiB"}, {"state_dir": tmp_path})
    printed = tmp_path / "printed.toml"
    printed.write_text(docs.in_force(settings, origins))
    assert load(printed, {}, {})[0] == settings
    lines = printed.read_text().splitlines()
    assert any(
        re.fullmatch(r'send_buffer_bytes = "2MiB" +# environment PROGRESSD_LIMITS_SEND_BUFFER_BYTES', x) for x in lines
    )
    assert any(re.fullmatch(r'\[pipelines."a b"\] +# file .*progressd.toml', x) for x in lines)
    assert any(re.fullmatch(r"\[pipelines.pdf\] +# default", x) for x in lines)


def test_printed_durations_have_units(tmp_path: Path) -> None:
    path = tmp_path / "progressd.toml"
    path.write_text(
        'state_dir = "/a/rather/long/directory/for/the/state"\n[pipelines.a]\ncommand = ["x"]\ntimeout = "2h"\n'
    )
    lines = docs.in_force(*load(path, {}, {})).splitlines()
    assert lines[0] == f'state_dir = "/a/rather/long/directory/for/the/state"  # file {path}'
    assert 'timeout = "2h"' in lines


def test_every_setting_and_option_is_described() -> None:
    for setting in declared(Settings):
        assert setting.meta.description, setting.key
        assert str(setting.meta.description).endswith("."), setting.key
    assert all(option.description for pipeline in BUILT_IN_PIPELINES.values() for option in pipeline.options.values())
