"""The plan for a command: its preset, and what is added to it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.errors import InvalidInput
from progressd.detect.plan import Plan, plan
from progressd.detect.preset_loader import BUILT_IN_PRESETS, Presets
from progressd.detect.rules import check

PRESETS = Presets()


def planned(command: str, **given: bool) -> Plan:
    return plan(command.split(), PRESETS, **given)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("rsync a b", "rsync"),
        ("/usr/bin/rsync a b", "rsync"),
        ("rsync -aP a b", "rsync-files"),
        ("rsync --progress a b", "rsync-files"),
        ("sudo -u root nice -n 5 rsync a b", "rsync"),
        ("env A=1 -u B rsync a b", "rsync"),
        ("timeout -k 5 60 dd if=a", "dd"),
        ("stdbuf -oL -e 0 curl u", "curl"),
        ("pip3.11 install a", "pip"),
        ("python3 -m pip install a", "pip"),
        ("python -m pytest", "pytest"),
        ("python a.py", None),
        ("python", None),
        ("apt install a", "apt-get"),
        ("fsck.ext4 a", "e2fsck"),
        ("git clone u", "git"),
        ("git -C dir clone u", "git"),
        ("git -c a=b fetch", "git"),
        ("git commit -m clone", None),
        ("git", None),
        ("docker ps", None),
        ("sh -c rsync", None),
        ("sudo", None),
        ("env", None),
        ("timeout 5", None),
        ("./a/../b c", None),
        ("../../etc/passwd", None),
        ("json", "json"),
    ],
)
def test_the_preset_of_a_program_is_found(command: str, name: str | None) -> None:
    preset = planned(command).preset
    assert (preset.name if preset else None) == name


@pytest.mark.parametrize(
    ("command", "changed"),
    [
        ("rsync -a a b", "rsync --info=progress2 --no-inc-recursive -a a b"),
        ("nice rsync -a a b", "nice rsync --info=progress2 --no-inc-recursive -a a b"),
        ("sudo rsync -a a b", "sudo rsync --info=progress2 --no-inc-recursive -a a b"),
        ("rsync -av a b", None),
        ("rsync -aP a b", None),
        ("rsync --info=stats a b", None),
        ("dd if=a of=b", "dd if=a of=b status=progress"),
        ("dd if=a status=none", None),
        ("git -C x clone u", "git -C x clone --progress u"),
        ("git clone -q u", None),
        ("git push origin clone", None),
        ("ffmpeg -i a b", "ffmpeg -progress pipe:9 -i a b"),
        ("sudo ffmpeg -i a b", None),
        ("apt-get install {fd}", "apt-get -o APT::Status-Fd=9 install {fd}"),
        (
            "tar cf a b",
            "tar cf a b --checkpoint=2000 --checkpoint-action=exec=echo $TAR_CHECKPOINT >/dev/fd/9",
        ),
        ("tar cf a -- b", None),
        ("qemu-img convert a b", "qemu-img convert -p a b"),
        ("qemu-img resize a b", None),
        ("cat a", None),
    ],
)
def test_a_changed_command_looks_unchanged_to_its_user(command: str, changed: str | None) -> None:
    found = planned(command)
    assert " ".join(found.arguments(9)) == (changed or command)
    assert bool(found.added) == (changed is not None)
    assert planned(command, adapt=False).command == tuple(command.split())
    assert planned(command, adapt=False).added == ""


def test_only_the_same_user_gets_variables() -> None:
    found = planned("cargo build")
    assert found.environment == {"CARGO_TERM_PROGRESS_WHEN": "always", "CARGO_TERM_PROGRESS_WIDTH": "100"}
    assert found.added == "adds CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=100"
    assert planned("sudo cargo build").environment == {}
    assert planned("cargo build", terminal=True).environment == {}


def test_a_descriptor_is_added_only_where_possible() -> None:
    assert planned("ffmpeg -i a").progress_fd
    assert planned("ffmpeg -i a").added == "adds -progress pipe:N"
    assert not planned("sudo ffmpeg -i a").progress_fd


def test_a_program_of_busybox_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "busybox").touch(0o755)
    (tmp_path / "dd").symlink_to("busybox")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert planned("dd if=a").added == ""


def test_options_at_the_end_need_gnu_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSIXLY_CORRECT", "1")
    assert planned("tar cf a b").added == ""
    assert planned("rsync a b").added


def test_a_named_preset_does_not_change_another_program() -> None:
    found = plan(["my-backup", "a"], PRESETS, name="rsync")
    assert found.preset is not None
    assert found.command == ("my-backup", "a")
    assert plan(["rsync", "a", "b"], PRESETS, name="rsync").added


def test_an_unknown_name_is_rejected_with_a_hint() -> None:
    with pytest.raises(InvalidInput, match="there is no preset 'rsnc'; did you mean rsync\\?"):
        plan(["a"], PRESETS, name="rsnc")


def test_a_users_preset_replaces_the_built_in_one(tmp_path: Path) -> None:
    (tmp_path / "rsync.toml").write_text("about = 'mine'")
    (tmp_path / "encode.toml").write_text("[[rules]]\nregex = 'done (?P<percent>\\d+)'")
    presets = Presets([tmp_path, tmp_path / "none"])
    assert {"encode", "rsync", "dd"} <= set(presets)
    found = plan(["rsync", "a", "b"], presets)
    assert found.preset is not None
    assert (found.preset.about, found.added) == ("mine", "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[rules]]\nregex = '('", "is not a regular expression"),
        ("[[rules]]\nregex = '(?P<foo>a)'", "(?P<foo>…) is not one of"),
        ("[[rules]]\nregexp = 'a'", "regexp"),
        ("[[adapt]]", "adapt needs arguments or environment"),
        ("about =", "Invalid value"),
        ("phases = { a = -1 }", "phases"),
        ("\x00", "Invalid"),
        ("same_as = 'mine'", "same_as must name a preset"),
        ("same_as = 'none'", "same_as must name a preset"),
    ],
)
def test_an_invalid_preset_is_rejected_with_its_path(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput) as error:
        plan(["mine"], Presets([tmp_path]))
    assert str(file) in str(error.value)
    assert reason in str(error.value)


def test_two_aliases_of_each_other_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("same_as = 'b'")
    (tmp_path / "b.toml").write_text("same_as = 'a'")
    with pytest.raises(InvalidInput, match="same_as"):
        plan(["a"], Presets([tmp_path]))


def test_an_alias_has_the_preset_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("same_as = 'rsync'")
    found = plan(["a", "b", "c"], Presets([tmp_path]))
    assert found.preset is not None
    assert found.preset.name == "rsync"
    assert found.added


def test_every_built_in_preset_is_valid() -> None:
    names = list(PRESETS)
    assert len(names) >= 30
    for path in BUILT_IN_PRESETS.glob("*.toml"):
        preset = PRESETS.find(path.stem)
        assert preset is not None
        check(tomllib.loads(path.read_text()))
        assert preset.name in names
        assert preset.about
        assert preset.rules or preset.json
        for other in preset.instead:
            assert other in names


@pytest.mark.parametrize(
    ("arguments", "total"),
    [
        ("if={file}", 5000),
        ("if={file} skip=4", 5000 - 4 * 512),
        ("if={file} skip=1k iflag=skip_bytes", 5000 - 1024),
        ("if={file} ibs=1000 count=2", 2000),
        ("if={file} bs=1k count=100", 5000),
        ("if=/dev/zero bs=2x1M count=3", 6 * 1024**2),
        ("if=/dev/zero bs=1MB count=3c", 3 * 10**6),
        ("if=/dev/zero count=3kB bs=1 iflag=count_bytes", 3000),
        ("if=/dev/zero", None),
        ("if={file}.none", None),
        ("of=b", None),
        ("bs=x count=3", None),
    ],
)
def test_the_total_of_dd_is_known(tmp_path: Path, arguments: str, total: float | None) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(5000))
    assert planned(f"dd {arguments.format(file=file)}").total == total


def test_the_total_of_tar_is_its_files_size(tmp_path: Path) -> None:
    tree, archive = tmp_path / "tree", tmp_path / "a.tar"
    (tree / "inner").mkdir(parents=True)
    (tree / "a").write_bytes(bytes(5000))
    (tree / "inner" / "b").write_bytes(bytes(1))
    expected = 4 * 512 + 5120 + 512 + 1024
    for command in (
        f"tar cf {archive} -C {tmp_path} tree", f"tar -C {tmp_path} -czf {archive} tree", f"tar cvf {archive} {tree}",
        f"tar --create --file={archive} --directory={tmp_path} tree",
    ):  # fmt: skip
        assert planned(command).total == expected
    archive.write_bytes(bytes(10240))
    for command in (
        f"tar xf {archive}",
        f"tar -xvf {archive} a",
        f"tar -tf{archive}",
        f"tar --extract --file={archive}",
    ):
        assert planned(command).total == 10240
    for command in ("tar", "tar xzf a.tgz", "tar cf a", f"tar cf {archive} {tmp_path}/none", "tar --help", "tar xf"):
        assert planned(command).total is None


@pytest.mark.parametrize(
    ("command", "items"),
    [
        ("curl -O http://a/b", 1),
        ("curl -O http://a/b -O https://a/c", 2),
        ("curl a/b", 0),
        ("rsync -aP {file} {file} host:", 2),
        ("scp {file} host:", 1),
        ("scp {directory} host:", 0),
        ("rsync {file} host:", 0),
        ("scp", 0),
    ],
)
def test_the_items_in_the_arguments_are_counted(tmp_path: Path, command: str, items: int) -> None:
    file = tmp_path / "file"
    file.touch()
    assert planned(command.format(file=file, directory=tmp_path)).items == items


def test_the_total_of_ffmpeg_is_its_limit() -> None:
    assert planned("ffmpeg -i a -t 1:30 b").total == 90
    assert planned("ffmpeg -i a b -t").total is None


WORDS = ["sudo", "env", "-u", "A=1", "rsync", "--", "", "git", "clone", "python", "-m", "tar"]


@given(st.lists(st.sampled_from(WORDS), min_size=1))
def test_any_command_has_a_plan(command: list[str]) -> None:
    found = plan(command, PRESETS)
    kept = list(found.command)
    for part in found.adaptation.arguments if found.adaptation else ():
        kept.remove(part)
    assert kept == command
    assert "{fd}" not in " ".join(found.arguments(7))


def test_a_plan_loads_no_library() -> None:
    code = (
        "import sys\nfrom progressd.detect.plan import plan\nfrom progressd.detect.preset_loader import Presets\n"
        "assert plan(['rsync', 'a', 'b'], Presets()).added\nprint(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"msgspec", "re2", "difflib", "inspect", "progressd.core.events"} & set(loaded)


def test_user_presets_are_in_the_configuration_directory(tmp_path: Path) -> None:
    directory = tmp_path / "progressd" / "presets"
    directory.mkdir(parents=True)
    (directory / "mine.toml").write_text("about = 'mine'")
    assert Presets.of_user({"XDG_CONFIG_HOME": str(tmp_path)}).find("mine") is not None
    assert Presets.of_user({"HOME": os.fspath(tmp_path)}).find("mine") is None
