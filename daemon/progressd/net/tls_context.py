"""The daemon's certificate: what TLS on the one port is set up with."""

import ssl
from pathlib import Path
from typing import Final

from progressd.config.settings import Server
from progressd.core.errors import SettingsError
from progressd.system.fs import read_regular

PROTOCOLS: Final = ["http/1.1"]  # offered by ALPN (RFC 7301): also for WebSockets, which begin with it


def tls_context(server: Server, before: Server | None = None) -> ssl.SSLContext | None:
    """From `tls_cert` and `tls_key`; None without a certificate. Raises SettingsError.

    `before`: the settings in force. Clients and pages know the port by its scheme, so it cannot change under them, and
    least of all to plaintext.
    """
    if before is not None and bool(before.tls_cert) is not bool(server.tls_cert):
        change = "was removed" if before.tls_cert else "was added"
        raise SettingsError(f"server.tls_cert {change}: the port begins and ceases to speak TLS only with a restart")
    if not server.tls_cert:
        if server.tls_key:
            raise SettingsError("server.tls_key is set and server.tls_cert is not: a key is for a certificate")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(PROTOCOLS)
    _look_into("server.tls_cert", server.tls_cert)
    if server.tls_key:
        _look_into("server.tls_key", server.tls_key)
    try:
        context.load_cert_chain(server.tls_cert, server.tls_key or None, password=_no_password)
    except ssl.SSLError as error:
        wrong = "its key is another one's" if error.reason == "KEY_VALUES_MISMATCH" else "no certificate with a key"
        raise SettingsError(
            f"server.tls_cert = {server.tls_cert!r}: {wrong}: expected both in PEM, in one file or with server.tls_key"
        ) from None
    return context


def _look_into(setting: str, path: str) -> None:
    """Raises SettingsError for a file that cannot be read, and for a key with a password."""
    try:
        text = read_regular(Path(path))
    except OSError as error:
        raise SettingsError(f"{setting} = {path!r}: {error.strerror}") from None
    if b"ENCRYPTED" in text:
        raise SettingsError(f"{setting} = {path!r}: the key has a password: `openssl pkey` makes one that has none")


def _no_password() -> str:
    """Nobody is there to be asked for one."""
    return ""
