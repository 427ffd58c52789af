"""The settings, each with its default, limits and description, stated here and nowhere else.

What is computed where the daemon starts (`default` in `extra`) has to be given; `config.load` does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from progressd.core.pipeline import Option, Pipeline

LogLevel = Literal["debug", "info", "warning", "error"]


def _seconds(description: str) -> Meta:
    return Meta(gt=0, description=description, extra={"unit": "seconds"})


def _bytes(description: str, least: int = 1) -> Meta:
    return Meta(ge=least, description=description, extra={"unit": "bytes"})


def _count(description: str) -> Meta:
    return Meta(ge=1, description=description)


Networks = tuple[Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]+(/[0-9]{1,3})?$")], ...]
NETWORKS: Final = 'a list of addresses or networks, such as "10.0.0.0/8"'


class Server(Struct, frozen=True, kw_only=True):
    """Where the daemon listens."""

    host: Annotated[
        str,
        Meta(
            min_length=1,
            description="The address to listen on, unless systemd holds the port (`progressd.socket`).",
            extra={"flag": "--host"},
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            description="The one port for page, REST and WebSocket; 0 for any free one.",
            extra={"flag": "--port"},
        ),
    ] = 8080
    base_path: Annotated[
        str,
        Meta(
            pattern=r"^/(?!(?:api|static|ws)(?:/|$))(?:[A-Za-z0-9_~-][A-Za-z0-9._~-]*(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?)?$",
            description="The path below which a proxy shows the daemon, such as `/progress/`, whether or not the proxy "
            "takes it away.",
            extra={"expected": 'a path such as "/progress/", not the daemon\'s own /api, /static or /ws'},
        ),
    ] = "/"
    allowed_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[a-z][a-z0-9+.-]*://[^/\s]+$")], ...],
        Meta(
            description="Origins whose pages may connect beside the daemon's own, such as `https://example.org`.",
            extra={"expected": 'a list of origins without a path, such as "https://example.org"'},
        ),
    ] = ()
    allowed_hosts: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^\s/:]+$")], ...],
        Meta(
            description="Names by which browsers may ask for the daemon, beside its addresses and `localhost`: what a "
            "proxy before it is called. With `*` a page of another site can make its own name lead here.",
            extra={"expected": 'a list of host names without a port, such as "progress.example.org"'},
        ),
    ] = ()
    tls_cert: Annotated[
        str,
        Meta(
            description="The file with the certificate chain, in PEM; with one, the port speaks TLS and nothing else."
        ),
    ] = ""
    tls_key: Annotated[str, Meta(description="The file with its private key, where that is not in the same file.")] = ""
    trusted_proxies: Annotated[
        Networks,
        Meta(
            description="Proxies whose `X-Forwarded-For` tells the address of the client.",
            extra={"expected": NETWORKS},
        ),
    ] = ()
    allow_unauthenticated: Annotated[
        bool,
        Meta(
            description="Whether the daemon may listen where other machines reach it without requiring a key.",
            extra={"flag": "--allow-unauthenticated"},
        ),
    ] = False


class Limits(Struct, frozen=True, kw_only=True):
    """What one client, or all of them, may ask of the daemon."""

    max_connections: Annotated[
        int,
        _count("Watchers at a time: WebSockets, event streams and long polls. And as many producers at `/ws/publish`."),
    ] = 100
    max_connections_per_address: Annotated[
        int, _count("Of these, from one address that is not in `exempt_addresses`.")
    ] = 80
    max_connections_per_key: Annotated[
        int, _count("Of these, with one key, and with the watch tokens made with it.")
    ] = 80
    max_connections_per_token: Annotated[int, _count("Of these, with one watch token.")] = 20
    max_sockets_per_address: Annotated[int, _count("Connections of any kind at a time from one address.")] = 1000
    handshake_timeout: Annotated[float, _seconds("How long a client may take to send the head of its request.")] = 10
    max_request_header_bytes: Annotated[int, _bytes("The longest head of a request.", 1024)] = 16 << 10
    heartbeat_interval: Annotated[float, _seconds("How often a watcher is sent a ping.")] = 30
    connection_timeout: Annotated[
        float, _seconds("How long a watcher may show no sign of life, neither pong nor message.")
    ] = 300
    max_message_bytes: Annotated[int, _bytes("The longest message of a client.")] = 64 << 10
    send_buffer_bytes: Annotated[
        int, _bytes("What may wait for a slow watcher before it is disconnected; it can resume.", 4096)
    ] = 1 << 20
    send_buffer_bytes_total: Annotated[
        int,
        _bytes(
            "What may wait for all watchers together before the slowest are disconnected; and as much again of other "
            "answers for all who read them slowly.",
            4096,
        ),
    ] = 64 << 20
    max_handshakes: Annotated[
        int,
        _count(
            "Connections at a time that have not sent the head of a request yet; more than that "
            "and the oldest of them is closed."
        ),
    ] = 1000
    max_upload_bytes: Annotated[int, _bytes("The largest file that can be submitted.")] = 500 << 20
    max_form_fields: Annotated[int, _count("Fields that may come in a form beside its files.")] = 20
    max_form_field_bytes: Annotated[int, _bytes("The longest field of a form that is not a file.")] = 64 << 10
    max_uploads: Annotated[int, _count("Requests at a time that bring files.")] = 32
    max_uploads_per_address: Annotated[int, _count("Of these, with one key, or from one address without a key.")] = 8
    idle_timeout: Annotated[
        float, _seconds("How long a client may send nothing in the middle of a body, or take nothing of an answer.")
    ] = 60
    min_body_rate: Annotated[
        int,
        _bytes(
            "How much of a body has to come a second, on average and after the first `idle_timeout`; events as lines "
            "may take their time.",
            0,
        ),
    ] = 1024
    min_free_bytes: Annotated[
        int, _bytes("What has to stay free on the disk: files that would need it are refused with 507.", 0)
    ] = 64 << 20
    max_stored_bytes: Annotated[
        int,
        _bytes(
            "What inputs, results and stderr of all jobs may take: files that would exceed it are refused with 507; "
            "0 for any number.",
            0,
        ),
    ] = 0
    rate_limit_per_minute: Annotated[int, _count("Requests a minute of one key, or of one address without a key.")] = 60
    rate_limit_burst: Annotated[int, _count("How many of them may come at once.")] = 10
    exempt_addresses: Annotated[
        Networks,
        Meta(
            description="Addresses that may send as many requests and files, and connect as often, as they like.",
            extra={"expected": NETWORKS},
        ),
    ] = ("127.0.0.0/8", "::1")


class StoreSettings(Struct, frozen=True, kw_only=True):
    """How jobs are kept."""

    synchronous: Annotated[
        Literal["FULL", "NORMAL", "OFF"],
        Meta(
            description="SQLite's `synchronous`: with FULL, what was answered survives a power cut; with NORMAL a "
            "crash of the daemon only; with OFF no promise is made."
        ),
    ] = "FULL"
    retention: Annotated[float, _seconds("How long a finished job and its files are kept.")] = 30 * 86400


class RunnerSettings(Struct, frozen=True, kw_only=True):
    """How pipelines run."""

    concurrency: Annotated[
        int, Meta(ge=1, description="Jobs at a time.", extra={"default": "the number of cores", "example": 4})
    ]
    job_timeout: Annotated[float, _seconds("A job that runs longer is stopped and has failed.")] = 3600
    kill_grace: Annotated[float, _seconds("From SIGTERM to SIGKILL for a job that does not stop.")] = 5
    max_memory_bytes: Annotated[
        int, _bytes("The memory that each process of a job may have of its own (RLIMIT_DATA).", 4096)
    ] = 4 << 30
    max_cpu_seconds: Annotated[float, _seconds("The processor time that each process of a job may use.")] = 86400
    max_file_bytes: Annotated[int, _bytes("The largest file that a job may write.")] = 4 << 30
    max_open_files: Annotated[int, Meta(ge=16, description="Files that each process of a job may have open.")] = 1024
    max_attempts: Annotated[
        int, _count("How often a job is started when the daemon dies under it, the first time included.")
    ] = 3


class IngestSettings(Struct, frozen=True, kw_only=True):
    """Where programs on this host report their jobs."""

    socket: Annotated[
        Path,
        Meta(
            description="The Unix socket.",
            extra={
                "default": "`ingest.sock` in `$RUNTIME_DIRECTORY`, or else in the state directory",
                "example": "/run/progressd/ingest.sock",
            },
        ),
    ]
    socket_mode: Annotated[
        int, Meta(ge=0, le=0o777, description="Who may connect to it, as a file mode.", extra={"unit": "mode"})
    ] = 0o660
    max_line_bytes: Annotated[int, _bytes("The longest line.", 1024)] = 1 << 20
    max_connections: Annotated[
        int, _count("Producers connected to the Unix socket at a time; more are refused with 503.")
    ] = 500
    idle_timeout: Annotated[
        float,
        _seconds("How long a producer on the Unix socket may send nothing, not even an empty line; then it is closed."),
    ] = 3600


class AuthSettings(Struct, frozen=True, kw_only=True):
    """Who may do what."""

    required: Annotated[
        bool,
        Meta(
            description="Whether nobody may do anything without a key; needed where other machines listen. A change "
            "takes a restart: after a reload alone everything is as open as before."
        ),
    ] = False
    keys_file: Annotated[
        Path,
        Meta(
            description="Where the hashes of the keys are kept, which `progressd keys` writes.",
            extra={"default": "`keys.json` in the state directory", "example": "/var/lib/progressd/keys.json"},
        ),
    ]
    token_secret_file: Annotated[
        Path,
        Meta(
            description="The secret that signs watch tokens; made where there is none. Another one ends all tokens.",
            extra={"default": "`token-secret` in the state directory", "example": "/var/lib/progressd/token-secret"},
        ),
    ]
    token_lifetime: Annotated[float, _seconds("How long a watch token is good.")] = 15 * 60


class ShutdownSettings(Struct, frozen=True, kw_only=True):
    """How the daemon stops."""

    drain_timeout: Annotated[float, _seconds("How long to wait for jobs, uploads and downloads.")] = 30
    wait_for_jobs: Annotated[
        bool, Meta(description="Whether to wait for running jobs; those it does not wait for are queued again.")
    ] = True


class LogSettings(Struct, frozen=True, kw_only=True):
    """What is logged, to stderr or to the journal of systemd."""

    level: Annotated[
        LogLevel,
        Meta(
            description="The lowest level that is logged; tracebacks only with `debug`.",
            extra={"flag": "--log-level"},
        ),
    ] = "info"
    format: Annotated[
        Literal["auto", "console", "json", "logfmt", "journal"],
        Meta(
            description="`auto`: console on a terminal; under systemd its journal, with fields such as `JOB_ID`; else "
            "logfmt."
        ),
    ] = "auto"


class Settings(Struct, frozen=True, kw_only=True):
    """All settings of a daemon. Durations are seconds, sizes are bytes."""

    state_dir: Annotated[
        Path,
        Meta(
            description="Where jobs and files are kept.",
            extra={
                "flag": "--state-dir",
                "default": "`$STATE_DIRECTORY`, or else `./progressd-data`",
                "example": "/var/lib/progressd",
            },
        ),
    ]
    server: Server = Server()
    limits: Limits = Limits()
    store: StoreSettings = StoreSettings()
    runner: RunnerSettings
    ingest: IngestSettings
    auth: AuthSettings
    shutdown: ShutdownSettings = ShutdownSettings()
    log: LogSettings = LogSettings()
    pipelines: dict[str, Pipeline] = {}


BUILT_IN: Final[Mapping[str, Pipeline]] = {
    "pdf": Pipeline(
        command=("{python}", "-m", "progressd_pdf.pdf", "{input}", "{output}", "--options", "{options}"),
        options={
            "dpi": Option("integer", 300, minimum=50, maximum=2400, description="Dots per inch of the result."),
            "deskew": Option("boolean", True, description="Straighten pages that were scanned askew."),
            "upscale": Option("boolean", True, description="Resample pages that have fewer dots per inch."),
            "ocr": Option("boolean", False, needs="tesseract", description="Put the text under the picture."),
            "advanced": Option("boolean", False, description="More contrast and a cleaner background."),
        },
    )
}
