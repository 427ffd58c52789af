"""The files of the web page, in memory: each minified and compressed once, with a hash of its content as its ETag.

HTML files are templates, because the pages share their frame (`webui/parts/`).

A file has two addresses. `/static/NAME` is revalidated each time, for pages of other sites. The pages of the daemon use
`/static/v-VERSION/NAME`, which never changes and is cached for a year. VERSION is a hash of all files. Modules import
each other by relative addresses, so a page never mixes the modules of two versions.
"""

import gzip
import math
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Final

from jinja2 import DictLoader, Environment
from rcssmin import cssmin
from rjsmin import jsmin

from progressd.http.job_cache import MIN_GZIP_BYTES

WEBUI: Final = Path(__file__).parent.parent / "webui"
RECHECK_INTERVAL: Final = 1.0  # seconds
REVALIDATED: Final = "no-cache"
IMMUTABLE: Final = "public, max-age=31536000, immutable"

TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",
}

_NAME: Final = re.compile(r"(?:v-([\w-]{1,64})/)?((?:[\w-]+/)?[\w.-]{1,100})", re.ASCII)
_LINK: Final = re.compile(rb'((?:src|href)="(?:\.\./)?)static/')
_MODULE: Final = re.compile(rb'<script type="module" src="((?:\.\./)?)static/([^"]+)"')
_IMPORT: Final = re.compile(rb"""^(?:import|export)\s(?:[^;]*?from )?'\./([^']+)';""", re.MULTILINE)
_HEAD_END: Final = b"</head>"
_INDENT: Final = re.compile(rb"\n\s+")
_MINIFIERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    ".css": cssmin,
    ".html": partial(_INDENT.sub, b"\n"),
    ".js": jsmin,
}


class StaticFile:
    """A file as it is sent."""

    def __init__(self, content_type: str, body: bytes) -> None:
        self.content_type = content_type
        self.body = body
        self.hash = _hash(body)

    @cached_property
    def compressed(self) -> bytes | None:
        """The compressed file; None if that would save nothing."""
        if len(self.body) < MIN_GZIP_BYTES:
            return None
        return gzip.compress(self.body, 9, mtime=0)


class StaticFiles:
    """The files in a directory. Changes of a file are noticed within a second, for developers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._checked = -math.inf
        self._stamp: tuple[object, ...] = ()
        self._contents: dict[str, bytes] = {}
        self._files: dict[str, StaticFile] = {}
        self._templates = Environment(autoescape=True)
        self._version = ""

    def find(self, path: str) -> tuple[StaticFile, str] | None:
        """Return a file by its path below `/static/` and its Cache-Control; None for an unknown one."""
        found = _NAME.fullmatch(path)
        if found is None:
            return None
        self._refresh()
        version, name = found.groups()
        if name not in self._contents or version not in (None, self._version):
            return None  # a page of another version must not get the modules of this one
        if name not in self._files:
            suffix = Path(name).suffix
            body = self._contents[name]
            body = self._page(body) if suffix == ".html" else body
            self._files[name] = StaticFile(TYPES[suffix], _MINIFIERS.get(suffix, bytes)(body))
        return self._files[name], REVALIDATED if version is None else IMMUTABLE

    def page(self, name: str, **values: object) -> str:
        """Return a page with the values in its template."""
        self._refresh()
        return self._linked(self._templates.get_template(name).render(values).encode()).decode()

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._checked + RECHECK_INTERVAL:
            return
        self._checked = now
        paths = sorted(path for path in self._directory.rglob("*") if path.suffix in TYPES)
        stats = [path.stat() for path in paths]
        stamp = (*paths, *((stat.st_mtime_ns, stat.st_size) for stat in stats))
        if stamp != self._stamp:
            self._contents = {path.relative_to(self._directory).as_posix(): path.read_bytes() for path in paths}
            parts = (b"%b %d %b" % (name.encode(), len(body), body) for name, body in self._contents.items())
            self._version = _hash(b"".join(parts))[:10]  # it is in each link
            pages = {name: body.decode() for name, body in self._contents.items() if name.endswith(".html")}
            self._templates = Environment(loader=DictLoader(pages), autoescape=True)
            self._files.clear()
            self._stamp = stamp

    def _page(self, template: bytes) -> bytes:
        return self._linked(self._templates.from_string(template.decode()).render().encode())

    def _linked(self, page: bytes) -> bytes:
        """Return a page that names this version of its files, and all modules, so that they are loaded at once."""
        found = _MODULE.findall(page)
        up, modules = found[0][0] if found else b"", [name.decode() for _, name in found]
        for name in modules:  # the list grows
            modules += [each for each in _imports(self._contents.get(name, b"")) if each not in modules]
        links = b"".join(b'<link rel="modulepreload" href="%bstatic/%b">\n' % (up, name.encode()) for name in modules)
        prefix = b"static/v-%b/" % self._version.encode()
        return _LINK.sub(rb"\1" + prefix, page.replace(_HEAD_END, links + _HEAD_END, 1))


def _imports(module: bytes) -> list[str]:
    return list(dict.fromkeys(name.decode() for name in _IMPORT.findall(module)))


def _hash(content: bytes) -> str:
    return urlsafe_b64encode(sha256(content).digest()[:15]).decode()


FILES: Final = StaticFiles(WEBUI)
