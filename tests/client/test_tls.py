"""A daemon that speaks TLS, to every way of talking to it: who trusts it, and what is said where nobody does."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from progressd.cli.main import main
from progressd.client import Job
from support.certificates import certificate
from support.serving import PATIENCE, ServedDaemon, served_daemon


@pytest.fixture(scope="module")
def cert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def encrypted(cert: Path) -> Iterator[ServedDaemon]:
    with served_daemon(cert.parent / "state", config=f"[server]\ntls_cert = '{cert}'\n") as daemon:
        yield daemon


def run(url: str, *arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="progressd", env={"PROGRESSD_URL": url, **environ})


WAYS = pytest.mark.parametrize("arguments", [["jobs"], ["watch"], ["submit", __file__], ["run", "true"]])


@WAYS
def test_a_certificate_that_nobody_vouches_for_is_named_with_what_to_do(
    arguments: list[str], encrypted: ServedDaemon
) -> None:
    url = f"https://localhost:{encrypted.port}"
    result = run(url, *arguments)
    assert f": the certificate of {url} is not trusted: self-signed certificate; SSL_CERT_FILE=FILE " in result.output
    assert "start one" not in result.output


@WAYS
def test_plain_http_to_a_port_with_tls_is_told_as_such(arguments: list[str], encrypted: ServedDaemon) -> None:
    result = run(f"http://localhost:{encrypted.port}", *arguments)
    assert ": this port uses TLS: use https:// or wss://" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("command", ["jobs", "watch"])
def test_tls_to_a_port_without_it_is_told_as_such(command: str) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        result = run(f"https://127.0.0.1:{server.server_port}", command)
        server.shutdown()
    said = f"https://127.0.0.1:{server.server_port} speaks no TLS: use http://127.0.0.1:{server.server_port}"
    assert said in result.output


def test_one_variable_makes_all_trust_it(encrypted: ServedDaemon, cert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"https://localhost:{encrypted.port}"
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with Job("trusted", url=url) as job:
        job.step("One")
    assert job.id in run(url, "jobs").output
    assert " completed in " in run(url, "watch", job.id).output
    wrapped = [sys.executable, "-m", "progressd", "run", "--url", url, "true"]
    done = subprocess.run(wrapped, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    wrong = run(f"https://127.0.0.1:{encrypted.port}", "jobs").output
    assert wrong.endswith("is not trusted: IP address mismatch, certificate is not valid for '127.0.0.1'\n")
