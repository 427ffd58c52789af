"""Resumable uploads with tus-js-client, in Node, and tuspy, over a network that cuts connections at random bytes."""

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cutting_proxy import CuttingProxy
from support.serving import ServedDaemon, served_daemon
from support.waiting import PATIENCE

pytestmark = pytest.mark.tools

CONFIG = """
[pipelines.copy]
command = ["cp", "{input}", "{output}"]
accept = ["*/*"]
"""
FILE = random.Random(1).randbytes(3_000_000)
CUTS = 12
CLIENT = """
import * as tus from 'tus-js-client';
import { createReadStream, statSync } from 'node:fs';
const [endpoint, path, chunkSize] = process.argv.slice(2);
const upload = new tus.Upload(createReadStream(path), {
  endpoint,
  uploadSize: statSync(path).size,
  chunkSize: Number(chunkSize),
  retryDelays: Array(50).fill(50),
  metadata: { filename: 'a b.bin', filetype: 'application/octet-stream', pipeline: 'copy' },
  onError: (error) => { console.error(String(error)); process.exit(1); },
  onSuccess: () => console.log(upload.url),
});
upload.start();
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    with served_daemon(tmp_path_factory.mktemp("served") / "state", config=CONFIG) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that uploads a file with tus-js-client."""
    directory = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "tus-js-client@4"]
    subprocess.run(install, cwd=directory, check=True, timeout=10 * PATIENCE)
    program = directory / "upload.mjs"
    program.write_text(CLIENT)
    return program


def random_cuts(seed: int, connections: int) -> list[tuple[str, int]]:
    """Return cuts in requests of at least their head, and in responses, which the client then does not receive."""
    choose = random.Random(seed)
    return [(choose.choice(["up", "up", "down"]), choose.randint(1, 400_000)) for _ in range(connections)]


def is_stored(served: ServedDaemon, upload_url: str) -> bool:
    """Wait for the job of an upload, and return whether its result is the file."""
    job_id = upload_url.strip().rpartition("/")[2]
    served.completed(job_id)
    return served.request("GET", f"/api/jobs/{job_id}/download").content == FILE


@pytest.mark.parametrize(("seed", "chunk"), [(1, "Infinity"), (2, "500000"), (3, "Infinity")])
def test_tus_js_client_uploads_under_cuts(
    seed: int, chunk: str, served: ServedDaemon, node_client: Path, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILE)
    before = served.request("GET", "/api/jobs").json()["total"]
    with CuttingProxy(served.port) as proxy:
        proxy.cuts = random_cuts(seed, CUTS)
        command = ["node", node_client, f"{proxy.url}/api/uploads", path, chunk]
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert proxy.cuts == [] or len(proxy.cuts) < CUTS
    assert is_stored(served, done.stdout)
    assert served.request("GET", "/api/jobs").json()["total"] == before + 1


@pytest.mark.parametrize("seed", [4, 5])
def test_tuspy_uploads_under_cuts(seed: int, served: ServedDaemon, tmp_path: Path) -> None:
    from tusclient.client import TusClient
    from tusclient.exceptions import TusCommunicationError

    path = tmp_path / "file"
    path.write_bytes(FILE)
    before = served.request("GET", "/api/jobs").json()["total"]
    with CuttingProxy(served.port) as proxy, path.open("rb") as file:
        client = TusClient(f"{proxy.url}/api/uploads")
        uploader = client.uploader(
            file_stream=file,
            chunk_size=1_000_000,
            metadata={"filename": "a.bin", "pipeline": "copy"},
            upload_checksum=True,
        )
        uploader.set_url(uploader.create_url())
        proxy.cuts = random_cuts(seed, CUTS)
        for _ in range(50):
            try:
                uploader.offset = uploader.get_offset()
                uploader.upload()
                break
            except (TusCommunicationError, OSError):
                continue
        assert len(proxy.cuts) < CUTS
    assert is_stored(served, uploader.url)
    assert served.request("GET", "/api/jobs").json()["total"] == before + 1
    assert json.loads(served.request("GET", f"/api/uploads/{uploader.url.rpartition('/')[2]}").text)["job_id"]
