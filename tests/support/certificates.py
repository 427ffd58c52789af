"""Self-signed certificates for localhost."""

import subprocess
from pathlib import Path


def certificate(directory: Path, name: str = "cert") -> Path:
    """Create a certificate for localhost, with its key in the same file."""
    path, key = directory / f"{name}.pem", directory / f"{name}.key"
    made = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -addext subjectAltName=DNS:localhost"
    )
    names = ["-subj", f"/CN={name}", "-keyout", str(key), "-out", str(path)]
    subprocess.run(["openssl", *made.split(), *names], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path
