"""The command line in Japanese: each text is translated, columns stay aligned, and programs read English."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from http.client import responses
from pathlib import Path
from typing import Any

import click
import progressd
import pytest
from click.testing import CliRunner
from progressd.cli import language
from progressd.cli.commands.jobs import jobs
from progressd.cli.commands.show import show
from progressd.cli.main import COMMANDS, OPERATORS, main
from progressd.cli.screen.rows import Tab
from progressd.cli.translated_help import texts, wrap
from progressd.core import errors
from progressd.core.messages import JobStatus
from progressd.languages.ja import SENTENCES, TEXTS
from progressd.languages.translation import Translation, translation
from rich.cells import cell_len
from support.cli import PROGRESSD, program
from support.screen import Screen
from support.serving import ServedDaemon
from support.terminal import in_terminal

ROOT = Path(progressd.__file__).parent
PLACEHOLDER = re.compile(r"\{(\w+)(?:![rs])?\}")
JAPANESE = {"LC_ALL": "ja_JP.UTF-8", "LANGUAGE": ""}
CLICK = Path(click.__file__).parent
# For programmers: the sentence for the code comes before the English one.
PROGRAMMERS = ("bad_request", "unsupported_version", "checksum_mismatch", "idempotency_key_reused", "internal_error")


# A string of the code, and a value in it, such as {shown(value)} or {', '.join(names)}.
STRING = r'f?"((?:[^"\\\n]|\\.)*)"'
CALL = re.compile(rf"\b(\w+)\(\s*{STRING}")
VALUE = re.compile(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")


@lru_cache
def source(folder: str = "") -> str:
    """Return the code below a folder, with strings in several lines joined."""
    path = ROOT / folder
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return re.sub(r'(?<=[^\\"])"\s*\n\s*f?"(?=[^"])', "", "\n".join(file.read_text() for file in files))


def calls(*folders: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each called function or class, and its first argument if that is text: X for a value."""
    for folder in folders:
        for name, text in CALL.findall(source(folder)):
            yield name, VALUE.sub("X", text.replace('\\"', '"'))


def shown() -> set[str]:
    """Return the English texts that the command line prints."""
    found = {text for name, text in CALL.findall(source("cli")) if name in ("t", "later")}
    found |= {*map(str, JobStatus), *map(str, Tab), *texts(main)}
    found |= set(
        re.findall(r'(?m)^about = "(.*)"', "".join(file.read_text() for file in ROOT.glob("detect/presets/*")))
    )
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        found |= set(list(texts(command))[: 1 if name in OPERATORS else None])
    return found


def of_click() -> str:
    """Return the code in which click looks texts up."""
    return re.sub(r'"\s*\n\s*"', "", "".join(file.read_text() for file in CLICK.glob("*.py")))


def test_each_text_is_translated() -> None:
    english = shown()
    assert sorted(english - set(TEXTS)) == []
    click_code = of_click()
    assert [text for text in TEXTS if text not in english and json.dumps(text) not in click_code] == []
    for key, text in (TEXTS | SENTENCES | dict(translation("ja").texts)).items():
        assert set(PLACEHOLDER.findall(text)) <= set(PLACEHOLDER.findall(key)), key


# Errors of operators' commands and of the library, and lines that are the same in each language.
LEFT = {
    "--progress-pattern: X",
    "X answered X events instead of X",
    "X cannot be the name of a key: use up to 64 letters, digits and ._@-, with a letter or digit first",
    "X is invalid: it contains spaces or other characters that a key cannot have",
    "X is not X",
    "X is not a duration, such as 12h or 30d",
    "X is not a scope: choose from X",
    "X is too long: use at most X",
    "X: X",
    "only root can do this: put sudo before the command",
    "the daemon sent a message that is not JSON: X",
}
RAISED = {
    "ClickException",
    "UsageError",
    "BadParameter",
    "ClientError",
    "ConnectError",
    "ResponseTimeout",
    "InvalidURL",
}
RAISED |= {"InvalidKey", "APIError", "JobCancelled", "InvalidInput", "_say", "say", "_print"}


def test_each_error_of_the_client_is_translated() -> None:
    known = translation("ja")
    raised = {text for name, text in calls("cli", "client") if name in RAISED and " " in text}
    assert {text for text in raised if known.sentence(text) == text} == LEFT


def test_each_error_of_the_daemon_for_people_is_translated() -> None:
    known = translation("ja")
    classes = [error for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "code")]
    assert known.codes.keys() == {error.code for error in classes} | set(errors.CODES.values())
    for_people = {error.__name__ for error in classes if error.code not in PROGRAMMERS}
    raised = {text for name, text in calls("http", "engine", "files", "auth", "net", "core") if name in for_people}
    assert {text for text in raised if known.sentence(text) == text} == {
        "X larger than X, the limit",
        "X is not a X",
        "no X",
        "answers were discarded because the client did not read them",
    }


MADE_OF_PARTS = {
    "the files together are larger than {limit}, the limit",
    "this key already has {count} connections",
    "this token already has {count} connections",
    "{name} is not a file of the type {type}",
}


def test_the_code_has_each_translated_sentence() -> None:
    code = source() + source("../progressd_pdf")
    phrases = {*responses.values(), "Unprocessable Entity", "Unprocessable Content"}  # Python 3.13 renamed it
    known = {*map(os.strerror, range(1, 134)), *phrases, *map(str, JobStatus)}
    parts = {key: PLACEHOLDER.split(key.removesuffix(": {reason}"))[::2] for key in translation("ja").texts}
    missing = {key for key, texts in parts.items() if key not in known and not all(text in code for text in texts)}
    assert missing == MADE_OF_PARTS


def test_a_sentence_keeps_its_values() -> None:
    known = translation("ja")
    assert known.sentence("book.pdf is larger than 500 MiB, the limit") == "book.pdf は上限の 500 MiB を超えています"
    assert known.sentence("job 1 is already completed") == "ジョブ 1 はすでに終了しています（完了）"
    nested = known.sentence("Pipeline error: pdf failed with exit status 3: oh: {no}")
    assert nested == "パイプラインのエラー: pdf が終了ステータス 3 で失敗しました: oh: {no}"
    assert known.sentence("something new", "too_large") == "大きすぎます（something new）"
    assert known.sentence("something new") == "something new"
    twins = Translation({"a {x}": "1 {x}", "a {x} b": "2 {x}"})
    assert [twins.sentence(text) for text in ("a 5", "a 5 b", "a \n b", "b")] == ["1 5", "2 5", "2 \n", "b"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja"}, "ja"),
        ({"LANG": "ja_JP.eucJP", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_GB.UTF-8", "LC_MESSAGES": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "de_DE.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8", "LANGUAGE": "fr:ja:en"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LANGUAGE": "en"}, "en"),
        ({"LANG": "C", "LANGUAGE": "ja"}, "en"),
        ({"LANG": "C.UTF-8", "LANGUAGE": "ja"}, "ja"),
        ({"LC_ALL": "", "LANG": "ja_JP.UTF-8"}, "ja"),
    ],
)
def test_the_environment_chooses_the_language(environ: Mapping[str, str], expected: str) -> None:
    assert language.language_of(environ) == expected


def test_lines_break_between_characters_and_before_no_punctuation() -> None:
    lines = wrap("出力は、ジョブの「ログ」として保存されます。 --no-log を付けると保存されません。", 12).splitlines()
    assert all(cell_len(line) <= 14 and line[0] not in "、。」ー" for line in lines)
    assert "--no-log" in "\n".join(lines)


@pytest.fixture
def japanese() -> Iterator[None]:
    language.use("ja")
    yield
    language.use("en")


@pytest.mark.usefixtures("japanese")
def test_output_for_programs_stays_english(daemon: ServedDaemon) -> None:
    job = daemon.request("POST", "/api/jobs", json={"kind": "test", "name": "写真"}).json()["id"]
    settings: Any = main.context_settings  # a command remembers the names of its option for help
    listed = CliRunner().invoke(jobs, ["--search", job, "--url", daemon.url], **settings)
    assert listed.stdout.split()[:2] == ["JOB", "STATUS"]
    assert listed.stdout.splitlines()[1].split()[1] == "queued"
    assert "Status:   queued" in CliRunner().invoke(show, [job, "--url", daemon.url], **settings).stdout


def test_help_and_errors_are_in_japanese(daemon: ServedDaemon) -> None:
    wrong = program("jobs", "--limit", "0", "--url", daemon.url, **JAPANESE)
    assert (
        "説明は「progressd jobs --help」で表示できます。\n\nエラー: '--limit' の値が正しくありません: 0 は範囲"
        in wrong.stderr
    )
    missing = program("show", "00000000", "--url", daemon.url, **JAPANESE)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("エラー: ID が 00000000 で始まるジョブはありません")
    help_ = program("watch", "--help", **JAPANESE).stdout
    assert help_.startswith("使い方: progressd watch [OPTIONS] [JOB]\n\n  すべてのジョブを一覧で")
    assert max(cell_len(line) for line in help_.splitlines() if not line.isascii()) <= 80


def test_columns_are_aligned_on_a_terminal(daemon: ServedDaemon) -> None:
    names = ["写真のバックアップ", "short"]
    for name in names:
        daemon.request("POST", "/api/jobs", json={"kind": "test", "name": name, "labels": {"test": "aligned"}})
    environment = [f"{name}={value}" for name, value in {"TERM": "xterm", **JAPANESE}.items()]
    arguments = ["jobs", "--label", "test=aligned", "--url", daemon.url]
    with in_terminal(["env", *environment, *PROGRESSD, *arguments]) as (process, terminal):
        terminal.resize(24, 120)
        lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.read_all().decode()).splitlines()
        assert process.wait() == 0
    places = {cell_len(line[: line.index(name)]) for name in ("名前", *names) for line in lines if name in line}
    assert len(places) == 1


def test_the_list_is_in_japanese(daemon: ServedDaemon) -> None:
    job = daemon.request("POST", "/api/jobs", json={"kind": "test", "name": "写真"}).json()["id"]
    environment = [f"{name}={value}" for name, value in {"TERM": "xterm", **JAPANESE}.items()]
    with in_terminal(["env", *environment, *PROGRESSD, "watch", "--search", job, "--url", daemon.url]) as (_, terminal):
        screen = Screen(terminal)
        screen.wait_for("q 終了")
        screen.wait_for("待機中 1")
        screen.wait_for("写真")
        terminal.type(b"c")
        screen.wait_for("写真 をキャンセルしますか？ (y/n)")
        terminal.type(b"nq")
