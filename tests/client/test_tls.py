"""TLS for every client: trust, and the errors without it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from progressd.client import Job
from support.certificates import certificate
from support.cli import program, run
from support.serving import ServedDaemon, served_daemon


@pytest.fixture(scope="module")
def cert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def encrypted(cert: Path) -> Iterator[ServedDaemon]:
    with served_daemon(cert.parent / "state", config=f"[server]\ntls_cert = '{cert}'\n") as daemon:
        yield daemon


WAYS = pytest.mark.parametrize("arguments", [["jobs"], ["watch"], ["submit", __file__], ["run", "true"]])


@WAYS
def test_an_untrusted_certificate_is_an_error(arguments: list[str], encrypted: ServedDaemon) -> None:
    url = f"https://localhost:{encrypted.port}"
    result = run(*arguments, PROGRESSD_URL=url)
    assert (
        f": the certificate of {url} is not trusted: self-signed certificate (set SSL_CERT_FILE=FILE " in result.output
    )
    assert "start one" not in result.output


@WAYS
def test_http_to_a_tls_port_is_an_error(arguments: list[str], encrypted: ServedDaemon) -> None:
    result = run(*arguments, PROGRESSD_URL=f"http://localhost:{encrypted.port}")
    assert ": this port uses TLS: use https:// or wss://" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("command", ["jobs", "watch"])
def test_tls_to_an_http_port_is_an_error(command: str) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        result = run(command, PROGRESSD_URL=f"https://127.0.0.1:{server.server_port}")
        server.shutdown()
    said = f"https://127.0.0.1:{server.server_port} does not speak TLS: use http://127.0.0.1:{server.server_port}"
    assert said in result.output


def test_all_clients_trust_ssl_cert_file(encrypted: ServedDaemon, cert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"https://localhost:{encrypted.port}"
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with Job("trusted", url=url) as job:
        job.step("One")
    assert job.id in run("jobs", PROGRESSD_URL=url).output
    assert " completed in " in run("watch", job.id, PROGRESSD_URL=url).output
    done = program("run", "--url", url, "true")
    assert (done.returncode, done.stderr) == (0, "")
    wrong = run("jobs", PROGRESSD_URL=f"https://127.0.0.1:{encrypted.port}").output
    assert wrong.endswith("is not trusted: IP address mismatch, certificate is not valid for '127.0.0.1'\n")
