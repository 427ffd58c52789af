"""The name of a command without its secrets."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.client.run.registration import name_of, new_id, shortened, with_origin
from progressd.core.event_limits import MAX_JOB_NAME


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["rsync", "-a", "a b", "/x"], "rsync -a 'a b' /x"),
        (["make", "-j4"], "make -j4"),
        (["mysqldump", "-psecret", "db"], "mysqldump -p*** db"),
        (["mysql", "-p", "db"], "mysql -p db"),
        (["rsync", "-partial", "a"], "rsync -partial a"),
        (["7z", "x", "-psecret", "a.7z"], "7z x -p*** a.7z"),
        (["sshpass", "-p", "secret", "ssh", "host"], "sshpass -p *** ssh host"),
        (["sshpass", "-psecret", "ssh", "host"], "sshpass -p*** ssh host"),
        (["docker", "run", "-p", "80:80", "web"], "docker run -p 80:80 web"),
        (["docker", "login", "-p", "secret", "host"], "docker login -p *** host"),
        (["redis-cli", "-a", "secret", "ping"], "redis-cli -a *** ping"),
        (["curl", "-u", "me:secret", "https://host/"], "curl -u *** https://host/"),
        (["curl", "https://me:secret@host/x?token=secret&y=1"], "curl https://me:***@host/x?token=***&y=1"),
        (["curl", "-H", "Authorization: Bearer secret", "u"], "curl -H Authorization: *** u"),
        (["curl", "-H", "X-Api-Key: secret"], "curl -H X-Api-Key: ***"),
        (["curl", "-H", "Accept: text/html"], "curl -H 'Accept: text/html'"),
        (["env", "AWS_SECRET_ACCESS_KEY=secret", "aws", "s3"], "env AWS_SECRET_ACCESS_KEY=*** aws s3"),
        (["env", "PGPASSWORD=secret", "psql"], "env PGPASSWORD=*** psql"),
        (["psql", "--no-password", "db"], "psql --no-password db"),
        (["tool", "--password=secret", "--token", "secret", "-v"], "tool --password=*** --token *** -v"),
        (["restic", "--password-file", "/root/key", "backup"], "restic --password-file /root/key backup"),
        (["sh", "-c", "tool --token secret; PASSWORD=secret x"], "sh -c tool --token *** PASSWORD=*** x"),
        (["sh", "-c", "a\n  b"], "sh -c 'a b'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_secrets_in_a_command_are_masked(command: list[str], name: str) -> None:
    assert name_of(command) == name


@given(st.lists(st.text(), min_size=1, max_size=6))
def test_a_name_is_one_line_of_limited_length(command: list[str]) -> None:
    name = shortened(name_of(command), MAX_JOB_NAME)
    assert len(name) <= MAX_JOB_NAME
    assert "\n" not in name
    name.encode()


def test_given_labels_win_over_host_and_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "eve\udce9" * 100)
    labels = with_origin({"host": "db1", "team": "scan"})
    assert labels.keys() == {"host", "user", "team"}
    assert (labels["host"], labels["user"]) == ("db1", ("eve?" * 50)[:199] + "…")
    many = {str(number): "" for number in range(50)}
    assert with_origin(many) == many


def test_an_id_is_a_random_uuid() -> None:
    ids = [uuid.UUID(new_id()) for _ in range(100)]
    assert {one.version for one in ids} == {4}
    assert {one.variant for one in ids} == {uuid.RFC_4122}
    assert len(set(ids)) == 100
