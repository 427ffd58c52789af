"""The page and its files."""

import re
from pathlib import Path

import httpx
from progressd.http.static_files import WEBUI
from pygments.lexers import JavascriptLexer
from pygments.token import Comment, Whitespace
from support.daemon import RunningDaemon, running_daemon
from support.http_client import client_of, exchange, get
from support.samples import ID

REFERENCE = re.compile(r"""(?:src|href)="([^"#:]+)"|(?:from|import|import\()'(\./[^']+)'""")
TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".json": "application/json",
    ".md": "text/markdown",
    ".ts": "text/plain",
}
VERSION = re.compile(r"/static/(v-[\w-]+)/")
PRELOAD = re.compile(r'<link rel="modulepreload" href="static/v-[\w-]+/([\w.-]+)">\n')


def tokens(module: str) -> str:
    """Return a module without comments and the space between tokens, which the server removes."""
    found = JavascriptLexer().get_tokens(module)
    return "".join(text for kind, text in found if kind not in Comment and kind not in Whitespace)


async def test_the_page_is_at_the_root(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert re.search(r"<h1 class=.brand.><img [^>]*> progressd</h1>", response.text)
    assert {"main.js", "feed.js", "progressd.js"} <= set(PRELOAD.findall(response.text))


async def test_the_pages_have_the_same_frame(client: httpx.AsyncClient) -> None:
    pages = [(await client.get(path)).text for path in ("/", f"/jobs/{ID}", f"/batches/{ID}", "/stats")]
    for page in pages:
        assert page.startswith("<!doctype html>")
        assert [page.count(part) for part in ('id="gate"', 'id="who"', "<footer")] == [1, 1, 1]
        assert not re.search(r"[{%]{2}|[%}]{2}", page)
    assert [page.count('<base href="../">') for page in pages] == [0, 1, 1, 0]


async def test_every_file_of_the_page_exists(client: httpx.AsyncClient) -> None:
    elements = [f"/static/{path.name}" for path in WEBUI.glob("progressd*.js")]  # loaded when needed
    seen, waiting = set(), ["/", "/jobs/x", "/batches/x", "/stats", f"/embed/{ID}", *elements]
    while waiting:
        url = waiting.pop()
        response = await client.get(url)
        assert response.status_code == 200, url
        seen.add(url)
        base = httpx.URL(url).join("../" if '<base href="../">' in response.text else "")
        for absolute, relative in REFERENCE.findall(response.text):
            found = str(base.join(absolute or relative))
            if found not in seen and found not in waiting:
                waiting.append(found)
    modules = {f"/static/{path.name}" for path in WEBUI.glob("*.js")} - {"/static/error-page.js"}
    assert modules <= {VERSION.sub("/static/", url) for url in seen}


async def test_files_have_their_type_and_are_revalidated(client: httpx.AsyncClient) -> None:
    for name in sorted(path.name for path in WEBUI.iterdir() if path.is_file()):
        response = await client.get(f"/static/{name}")
        assert response.status_code == 200
        if name.endswith(".js"):
            assert tokens(response.text) == tokens((WEBUI / name).read_text())
        elif not name.endswith((".html", ".css")):
            assert response.content == (WEBUI / name).read_bytes()
        assert response.headers["Content-Type"].startswith(TYPES[Path(name).suffix])
        assert response.headers["Cache-Control"] == "no-cache"
        assert not response.headers["ETag"].startswith("W/")
        again = await client.get(f"/static/{name}", headers={"If-None-Match": response.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")


async def test_a_version_of_the_files_is_immutable(client: httpx.AsyncClient) -> None:
    version = VERSION.findall((await client.get("/")).text.replace('"static/', '"/static/'))[0]
    for encoding, sent in (("gzip", "gzip"), ("identity", None)):
        response = await client.get(f"/static/{version}/languages/ja.js", headers={"Accept-Encoding": encoding})
        assert "immutable" in response.headers["Cache-Control"]
        response = await client.get(f"/static/{version}/main.js", headers={"Accept-Encoding": encoding})
        assert response.headers.get("Content-Encoding") == sent
        assert response.content == (await client.get("/static/main.js")).content
        assert response.headers["Vary"] == "Accept-Encoding"
    assert (await client.get("/static/v-another/main.js")).status_code == 404


async def test_only_files_of_the_page_are_served(daemon: RunningDaemon) -> None:
    for path in [
        "/static/../rest/app.py",
        "/static/%2e%2e/rest/app.py",
        "/static/..%2frest/app.py",
        "/static//etc/passwd",
        "/../../../../etc/passwd",
        "/static/%00",
        "/static/" + "x" * 300,
        "/static/" + "x/" * 2500,
        "/static/",
        "/index.html/../../app.py",
    ]:
        answer = await exchange(daemon, get(path, "Connection: close"))
        assert answer.startswith(b"HTTP/1.1 404 "), answer[:200]
        assert b'{"error":"' in answer


async def test_invalid_paths_are_rejected(daemon: RunningDaemon) -> None:
    answer = await exchange(daemon, get("//etc/passwd", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert b'{"error":"' in answer


BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Mode": "navigate"}


async def test_a_person_receives_errors_as_pages_and_a_program_as_json(client: httpx.AsyncClient) -> None:
    for path, up in [
        ("/no", "./"),
        ("/no/such/page", "../../"),
        (f"/api/jobs/{ID}", "../../"),
        ("/jobs/a/b", "../../"),
    ]:
        page = await client.get(path, headers=BROWSER)
        assert (page.status_code, page.headers["Content-Type"]) == (404, "text/html; charset=utf-8"), path
        assert f'<base href="{up}">' in page.text
        assert "accept" in page.headers["Vary"].lower()
        assert (await client.head(path, headers=BROWSER)).content == b""
        json = await client.get(path)
        assert (json.status_code, json.headers["Content-Type"]) == (404, "application/json")
        page = await client.get(path, headers={**BROWSER, "Accept-Language": "ja-JP,en;q=0.5"})
        assert "accept-language" in page.headers["Vary"].lower()
        assert '<html lang="ja" data-own>' in page.text
        assert "<h1>ここには何もありません</h1>" in page.text
    assert (
        f"<p>ジョブ {ID} はありません。</p>" in (await client.get(f"/api/jobs/{ID}", headers=page.request.headers)).text
    )
    assert "&lt;script&gt;" in (await client.get("/<script>", headers=BROWSER)).text
    program = {"Accept": "text/html, image/gif, */*; q=.2"}  # some programs send this
    assert (await client.get("/api/no", headers=program)).json()
    assert (await client.post("/no", headers=BROWSER)).json()


async def test_a_page_needs_no_key_and_an_error_is_a_page(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, auth={"required": True}) as daemon, client_of(daemon) as client:
        for path in ("/", f"/jobs/{ID}", f"/batches/{ID}", "/stats"):
            assert (await client.get(path)).status_code == 200
        link = await client.get(f"/api/jobs/{ID}/download?token=x", headers=BROWSER)
        assert (link.status_code, link.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "Invalid token." in link.text


def test_the_elements_have_the_colours_of_the_page() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", (WEBUI / "page.css").read_text(), re.DOTALL)[:2]
    elements = re.findall(r"(\w+): 'light-dark\((#\w+), (#\w+)\)'", (WEBUI / "colors.js").read_text())
    assert len(elements) == 10
    for name, in_light, in_dark in elements:
        assert f"--{name}: {in_light};" in light
        assert f"--{name}: {in_dark};" in dark
