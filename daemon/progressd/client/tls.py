"""TLS from the client's side: whom it trusts, and what keeps a connection from coming about."""

import ssl
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

NO_ISSUER: Final = frozenset({18, 19, 20, 21})  # X509_V_ERR_… of OpenSSL: nobody here vouches for the certificate
PLAIN: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING"})


def context() -> ssl.SSLContext:
    """Trusts whom this machine trusts; or the certificates in SSL_CERT_FILE and SSL_CERT_DIR, where these are set."""
    return ssl.create_default_context()


def complaint(error: BaseException, url: str) -> str | None:
    """The sentence for when a connection to this https:// address failed with TLS, if that is what the error says."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            trust = "; SSL_CERT_FILE=FILE trusts the one in a file" if cause.verify_code in NO_ISSUER else ""
            return f"the certificate of {url} is not trusted: {cause.verify_message.rstrip('.')}{trust}"
        if isinstance(cause, ssl.SSLError) and cause.reason in PLAIN:
            return f"what answers at {url} speaks no TLS: use http://{urlsplit(url).netloc}"
        if isinstance(cause, ssl.SSLError):
            reason = (cause.reason or "it broke off").replace("_", " ").lower()
            return f"TLS with {url} does not come about: {reason}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
