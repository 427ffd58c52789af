"""The settings, each with its default, limits and description.

`config.load` computes the defaults that depend on the host (`default` in `extra`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from progressd.core.pipeline import Option, Pipeline

LogLevel = Literal["debug", "info", "warning", "error"]


def _setting(description: str, **given: Any) -> Meta:
    """Describe a setting: its limits are arguments of Meta, and its `extra` is that of config.fields.Setting."""
    limits = {name: given.pop(name) for name in ("ge", "le", "pattern", "min_length") if name in given}
    return Meta(description=description, extra=given, **limits)


def _seconds(description: str) -> Meta:
    return Meta(gt=0, description=description, extra={"unit": "seconds"})


def _bytes(description: str, least: int = 1) -> Meta:
    return _setting(description, ge=least, unit="bytes")


def _count(description: str) -> Meta:
    return _setting(description, ge=1)


Networks = tuple[Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]+(/[0-9]{1,3})?$")], ...]
NETWORKS: Final = 'a list of addresses or networks, such as "10.0.0.0/8"'


class Server(Struct, frozen=True, kw_only=True):
    """The addresses of the daemon."""

    host: Annotated[
        str,
        _setting(
            "The address to listen on, unless systemd holds the port (`progressd.socket`).", min_length=1, flag="--host"
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, _setting("The port for the page, REST and WebSocket; 0 for any free one.", ge=0, le=65535, flag="--port")
    ] = 8080
    base_path: Annotated[
        str,
        _setting(
            "The path at which a proxy serves the daemon, such as `/progress/`, whether or not it strips the path.",
            pattern=r"^/(?!(?:api|static|ws)(?:/|$))(?:[A-Za-z0-9_~-][A-Za-z0-9._~-]*(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?)?$",
            expected='a path such as "/progress/", not the daemon\'s own /api, /static or /ws',
        ),
    ] = "/"
    allowed_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[a-z][a-z0-9+.-]*://[^/\s]+$")], ...],
        _setting(
            "Other origins whose pages may connect, such as `https://example.org`.",
            expected='a list of origins without a path, such as "https://example.org"',
        ),
    ] = ()
    allowed_hosts: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^\s/:]+$")], ...],
        _setting(
            "Host names that browsers may use, such as that of a proxy, in addition to `localhost` and the "
            "daemon's addresses. `*` allows any name. Pages of other sites can then use DNS rebinding.",
            expected='a list of host names without a port, such as "progress.example.org"',
        ),
    ] = ()
    tls_cert: Annotated[
        str, _setting("The file with the certificate chain, in PEM. With it the port accepts only TLS.")
    ] = ""
    tls_key: Annotated[str, _setting("The file with the private key, if it is not in `tls_cert`.")] = ""
    trusted_proxies: Annotated[
        Networks, _setting("Proxies whose `X-Forwarded-For` is trusted.", expected=NETWORKS)
    ] = ()
    allow_unauthenticated: Annotated[
        bool,
        _setting(
            "Whether the daemon may listen where other machines can reach it, without requiring a key.",
            flag="--allow-unauthenticated",
        ),
    ] = False


class Limits(Struct, frozen=True, kw_only=True):
    """The limits of each client, and of all together."""

    max_connections: Annotated[
        int,
        _count(
            "Watchers at a time: WebSockets, event streams and long polls. The same limit applies to producers at "
            "`/ws/publish`."
        ),
    ] = 100
    max_connections_per_address: Annotated[
        int,
        _count(
            "Watchers at a time from one address, unless it is in `exempt_addresses`. The same limit applies to "
            "producers."
        ),
    ] = 80
    max_connections_per_key: Annotated[
        int, _count("Watchers at a time with one key and its watch tokens. The same limit applies to producers.")
    ] = 80
    max_connections_per_token: Annotated[int, _count("Watchers at a time with one watch token.")] = 20
    max_sockets_per_address: Annotated[int, _count("Connections of any kind at a time from one address.")] = 1000
    handshake_timeout: Annotated[float, _seconds("How long a client may take to send the header of a request.")] = 10
    max_request_header_bytes: Annotated[int, _bytes("The longest header of a request.", 1024)] = 16 << 10
    heartbeat_interval: Annotated[float, _seconds("How often the daemon pings a watcher.")] = 30
    connection_timeout: Annotated[
        float, _seconds("How long a watcher may send nothing, neither a pong nor a message.")
    ] = 300
    max_message_bytes: Annotated[int, _bytes("The longest message of a client.")] = 64 << 10
    send_buffer_bytes: Annotated[
        int, _bytes("How much may wait for a slow watcher before it is disconnected. It can resume.", 4096)
    ] = 1 << 20
    send_buffer_bytes_total: Annotated[
        int,
        _bytes(
            "How much may wait for all watchers together before the slowest are disconnected. The same limit applies "
            "to other responses that clients read slowly.",
            4096,
        ),
    ] = 64 << 20
    max_handshakes: Annotated[
        int,
        _count(
            "Connections at a time that have not sent the header of a request. If another one arrives, the oldest is "
            "closed."
        ),
    ] = 1000
    max_upload_bytes: Annotated[int, _bytes("The largest file that can be submitted.")] = 500 << 20
    max_form_fields: Annotated[int, _count("Fields in a form, without its files.")] = 20
    max_form_field_bytes: Annotated[int, _bytes("The longest field of a form, except files.")] = 64 << 10
    max_uploads: Annotated[int, _count("Uploads at a time.")] = 32
    max_uploads_per_address: Annotated[
        int, _count("Uploads at a time with one key, or from one address without a key.")
    ] = 8
    idle_timeout: Annotated[
        float, _seconds("How long a client may send nothing within a body, or read nothing of a response.")
    ] = 60
    min_body_rate: Annotated[
        int,
        _bytes(
            "The minimum average rate of a body per second, after the first `idle_timeout`. Event streams are exempt.",
            0,
        ),
    ] = 1024
    min_free_bytes: Annotated[
        int, _bytes("How much stays free on the disk. Files that would need it are rejected with 507.", 0)
    ] = 64 << 20
    max_stored_bytes: Annotated[
        int,
        _bytes(
            "The limit for the files of all jobs. Files that would exceed it are rejected with 507. 0: no limit.", 0
        ),
    ] = 0
    rate_limit_per_minute: Annotated[
        int, _count("Requests per minute with one key, or from one address without a key.")
    ] = 60
    rate_limit_burst: Annotated[int, _count("How many requests of one client may arrive at once.")] = 10
    exempt_addresses: Annotated[
        Networks,
        _setting(
            "Addresses without a limit on requests and connections per address. They may use three quarters of "
            "`max_uploads`.",
            expected=NETWORKS,
        ),
    ] = ("127.0.0.0/8", "::1")


class StoreSettings(Struct, frozen=True, kw_only=True):
    """The storage of jobs."""

    synchronous: Annotated[
        Literal["FULL", "NORMAL", "OFF"],
        _setting(
            "SQLite's `synchronous`. With FULL, acknowledged events survive a power cut; with NORMAL, a "
            "crash of the daemon; with OFF, neither is guaranteed."
        ),
    ] = "FULL"
    retention: Annotated[float, _seconds("How long a finished job and its files are kept.")] = 30 * 86400
    upload_retention: Annotated[
        float, _seconds("How long an unfinished resumable upload is kept after its last bytes have arrived.")
    ] = 86400


class RunnerSettings(Struct, frozen=True, kw_only=True):
    """The execution of pipelines."""

    concurrency: Annotated[int, _setting("Jobs at a time.", ge=1, default="the number of cores", example=4)]
    job_timeout: Annotated[float, _seconds("A job that runs longer is stopped and fails.")] = 3600
    kill_grace: Annotated[float, _seconds("The time between SIGTERM and SIGKILL for a job that does not stop.")] = 5
    max_memory_bytes: Annotated[int, _bytes("The memory of each process of a job (RLIMIT_DATA).", 4096)] = 4 << 30
    max_cpu_seconds: Annotated[float, _seconds("The CPU time of each process of a job.")] = 86400
    max_file_bytes: Annotated[int, _bytes("The largest file that a job may write.")] = 4 << 30
    max_open_files: Annotated[int, _setting("Open files of each process of a job.", ge=16)] = 1024
    max_attempts: Annotated[
        int, _count("How many times a job is started in total, if the daemon is killed while the job runs.")
    ] = 3


class IngestSettings(Struct, frozen=True, kw_only=True):
    """The Unix socket for producers on this host."""

    socket: Annotated[
        Path,
        _setting(
            "The Unix socket.",
            default="`ingest.sock` in `$RUNTIME_DIRECTORY`, otherwise in the state directory",
            example="/run/progressd/ingest.sock",
        ),
    ]
    socket_mode: Annotated[
        str,
        _setting(
            "The file mode of the socket, which determines the users who may connect.",
            pattern="^0?[0-7]{3}$",
            expected='an octal file mode in quotes, such as "0660"',
        ),
    ] = "0660"
    max_line_bytes: Annotated[
        int, _bytes("The longest line of a producer, also over HTTP and at `/ws/publish`.", 1024)
    ] = 1 << 20
    max_connections: Annotated[int, _count("Producers at a time. Others are rejected with 503.")] = 500
    idle_timeout: Annotated[
        float, _seconds("How long a producer may send nothing, not even an empty line, before it is disconnected.")
    ] = 3600


class AuthSettings(Struct, frozen=True, kw_only=True):
    """Keys and tokens."""

    required: Annotated[
        bool,
        _setting(
            "Whether every request needs a key; necessary if other machines can reach the daemon. A "
            "change needs a restart."
        ),
    ] = False
    keys_file: Annotated[
        Path,
        _setting(
            "The file with the hashes of the keys, which `progressd keys` writes.",
            default="`keys.json` in the state directory",
            example="/var/lib/progressd/keys.json",
        ),
    ]
    token_secret_file: Annotated[
        Path,
        _setting(
            "The file with the secret that signs watch tokens, created if missing. A new secret "
            "invalidates all tokens.",
            default="`token-secret` in the state directory",
            example="/var/lib/progressd/token-secret",
        ),
    ]
    token_lifetime: Annotated[float, _seconds("How long a watch token is valid.")] = 15 * 60
    max_token_lifetime: Annotated[
        float, _seconds("How long a watch token may be valid if the client asks for a longer time.")
    ] = 7 * 24 * 3600


class ShutdownSettings(Struct, frozen=True, kw_only=True):
    """The shutdown of the daemon."""

    drain_timeout: Annotated[float, _seconds("How long to wait for jobs, uploads and downloads.")] = 30
    wait_for_jobs: Annotated[
        bool, _setting("Whether to wait for running jobs. Jobs that are stopped are queued again.")
    ] = True


class LogSettings(Struct, frozen=True, kw_only=True):
    """The log of the daemon, on stderr or in the journal of systemd, and the logs of jobs."""

    level: Annotated[
        LogLevel, _setting("The lowest level that is logged. Only `debug` includes tracebacks.", flag="--log-level")
    ] = "info"
    format: Annotated[
        Literal["auto", "console", "json", "logfmt", "journal"],
        _setting(
            "`auto`: console on a terminal; the journal under systemd, with fields such as `JOB_ID`; otherwise logfmt."
        ),
    ] = "auto"
    max_bytes_per_job: Annotated[
        int,
        _setting(
            "The limit for the log of a job. If a log is longer, only its first quarter and its end are kept.",
            ge=1 << 20,
            le=64 << 20,
            unit="bytes",
        ),
    ] = 4 << 20
    retention: Annotated[
        float, _seconds("How long the log of a finished job is kept, if `store.retention` keeps the job longer.")
    ] = 30 * 86400


class Settings(Struct, frozen=True, kw_only=True):
    """All settings. Durations are seconds, sizes are bytes."""

    state_dir: Annotated[
        Path,
        _setting(
            "The directory of the jobs and their files.",
            flag="--state-dir",
            default="`$STATE_DIRECTORY`, otherwise `./progressd-data`",
            example="/var/lib/progressd",
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


BUILT_IN_PIPELINES: Final[Mapping[str, Pipeline]] = {
    "pdf": Pipeline(
        command=("{python}", "-m", "progressd_pdf.pdf", "{input}", "{output}", "--options", "{options}"),
        title="PDF",
        description="Clean and straighten scans",
        options={
            "dpi": Option("integer", 300, minimum=50, maximum=2400, title="Resolution", description="Dots per inch"),
            "deskew": Option("boolean", True, title="Deskew", description="Straighten crooked scans"),
            "upscale": Option("boolean", True, title="Upscale", description="Resample low-resolution pages"),
            "ocr": Option(
                "boolean",
                False,
                needs="tesseract",
                title="Recognize text",
                description="Make the result searchable",
            ),
            "advanced": Option("boolean", False, title="Advanced", description="Cleaner background, more contrast"),
            # Without defaults, so that the options of a job are those that older clients know.
            "rotate": Option(
                "boolean",
                title="Turn pages",
                description="Turn pages that are upside down or sideways; needs Tesseract; true by default",
            ),
            "language": Option(
                "string",
                title="Language",
                values_command=("{python}", "-m", "progressd_pdf.tesseract"),
                description="Languages of the text, such as jpn+eng; eng by default",
            ),
            "existing_text": Option(
                "string",
                choices=("keep", "redo"),
                title="Text of scans",
                description="Keep the text that scans have, or recognize it again; keep by default",
            ),
        },
    )
}
