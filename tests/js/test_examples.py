"""The examples in docs/embedding.md, and the npm package: with real bundlers, frameworks and a real browser."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from progressd import __version__
from progressd.http.static_files import WEBUI
from support import keys
from support.samples import job_id
from support.serving import ServedDaemon, served_daemon
from support.site import site

DOCS = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text()
PACKAGES = ("esbuild", "rollup", "typescript", "react", "react-dom", "vue", "htmx.org@2", "htmx-ext-sse@2")
JOB = job_id(1)

TYPED = """
import { watch, report, submit, applied, type Job, ProgressdError } from 'progressd';

let job: Job = { id: 'x', status: 'queued' };
const watching = watch('http://box', { job: 'x', token: async () => 'y' });
const off: () => void = watching.on('progress', ({ data }) => data.percent.toFixed());
for await (const message of watching) {
  if (message.type === 'completed') console.log(message.data.download_url?.length);
  job = applied(job, message);
}
try {
  const reporting = await report('http://box', { kind: 'a' });
  reporting.progress(1, 2, 'b');
  reporting.progress({ tasks: [{ id: 'a', current: 1 }] });
  await reporting.complete();
  const { job_id } = await submit('http://box', new Blob(['x']), { onprogress: ({ loaded }) => loaded });
} catch (error) {
  if (error instanceof ProgressdError) error.code.toUpperCase();
}
// @ts-expect-error
watch('http://box', { job: 1 });
"""
COMPILE = """
import { readFileSync } from 'node:fs';
import { compileScript, parse } from 'vue/compiler-sfc';
const { descriptor } = parse(readFileSync(0, 'utf8'));
process.stdout.write(compileScript(descriptor, { id: 'job', inlineTemplate: true }).content);
"""


def block(heading: str, language: str, number: int = 0) -> str:
    """Return a block of code below a heading."""
    section = re.split(r"^## ", DOCS.partition(f"\n## {heading}\n")[2], flags=re.MULTILINE)[0]
    return str(re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[number])


def test_the_package_has_the_version_of_the_daemon() -> None:
    package = json.loads((WEBUI / "package.json").read_text())
    assert package["version"] == __version__
    for name in ("job", "batch"):
        assert f"./progressd-{name}.js" in package["exports"]


class Project(NamedTuple):
    """A directory with npm packages, and a daemon that allows a site."""

    directory: Path
    daemon: ServedDaemon
    key: str
    origin: str
    pages: dict[str, str]
    browser: Browser

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command in the directory, and return its output."""
        environment = {**os.environ, "PROGRESSD_URL": self.daemon.url, "PROGRESSD_KEY": self.key}
        done = subprocess.run(
            command, cwd=self.directory, input=text, capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def bundle(self, name: str, code: str) -> str:
        """Bundle a module for browsers."""
        (self.directory / name).write_text(code)
        options = (
            "--bundle",
            "--format=esm",
            "--jsx=automatic",
            "--log-level=error",
            "--define:__VUE_OPTIONS_API__=false",
        )
        return self.run("npx", "esbuild", name, *options)

    def post(self, path: str, **body: Any) -> Any:
        response = self.daemon.request("POST", path, json=body, headers=keys.bearer(self.key))
        assert response.is_success, response.text
        return response.json()

    def shows_a_job(self, page_text: str, number: int, done: str = "completed") -> None:
        """Open a page that watches a job, and check that it shows the progress and the end."""
        id_ = job_id(number)
        self.post("/api/jobs", id=id_)
        token = self.post(f"/api/jobs/{id_}/token")["token"]
        text = page_text.replace("https://box:8080", self.daemon.url).replace("JOB", id_).replace("TOKEN", token)
        self.pages["/"] = f"<!doctype html><title>Example</title><body>{text}"
        page = self.browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{self.origin}/?job={id_}&token={token}")
        data = {"current_step": 1, "total_steps": 4, "step_name": "Reading"}
        self.post(f"/api/jobs/{id_}/events", type="progress", data=data)
        expect(page.locator("body")).to_contain_text("Reading")
        expect(page.get_by_role("progressbar")).to_have_js_property("value", 25)
        self.post(f"/api/jobs/{id_}/events", type="completed")
        expect(page.locator("body")).to_contain_text(done)
        assert errors == []
        page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium-headless-shell", args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def project(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    directory = tmp_path_factory.mktemp("npm")
    package = directory / "progressd"
    shutil.copytree(WEBUI, package)
    (package / "progressd-log.js").touch()
    (directory / "package.json").write_text('{"type": "module", "private": true}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--install-links", str(package), *PACKAGES]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    state_dir = tmp_path_factory.mktemp("state") / "state"
    key = keys.add(state_dir / "keys.json", "site", "read", "write")
    with site() as (origin, pages):
        config = f'[server]\nallowed_origins = ["{origin}"]\n[auth]\nrequired = true\n'
        with served_daemon(state_dir, config=config) as daemon:
            yield Project(directory, daemon, key, origin, pages, browser)


@pytest.mark.tools
def test_the_types_are_right(project: Project) -> None:
    (project.directory / "typed.ts").write_text(TYPED)
    options = ("--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2023,dom")
    project.run("npx", "tsc", *options, "typed.ts")


@pytest.mark.tools
def test_the_example_for_node_runs_in_bundles_too(project: Project) -> None:
    (project.directory / "node.js").write_text(block("Node and bundlers", "js"))
    project.run(
        "npx", "esbuild", "node.js", "--bundle", "--format=esm", "--platform=node", "--outdir=esbuild", "--splitting"
    )
    resolve = "{ name: 'resolve', resolveId: (id) => id === 'progressd' ? '%s' : null }"
    found = project.directory / "node_modules" / "progressd" / "progressd.js"
    config = f"export default {{ input: 'node.js', plugins: [{resolve % found}], output: {{ dir: 'rollup' }} }};"
    (project.directory / "rollup.config.js").write_text(config)
    project.run("npx", "rollup", "-c")
    for script in ("node.js", "esbuild/node.js", "rollup/node.js"):
        assert project.run("node", script).split() == ["processing", "completed"]


@pytest.mark.tools
def test_the_example_in_plain_javascript_runs(project: Project) -> None:
    project.shows_a_job(block("JavaScript", "html"), 11)


@pytest.mark.tools
def test_the_example_for_react_runs(project: Project) -> None:
    start = "import { createRoot } from 'react-dom/client';\n"
    show = f"createRoot(document.body).render(<Job url='{project.daemon.url}' id={{id}} token={{token}} />);"
    values = "const [id, token] = ['job', 'token'].map((name) => new URL(location).searchParams.get(name));\n"
    project.pages["/react.js"] = project.bundle("react.jsx", start + block("React", "jsx") + values + show)
    project.shows_a_job('<script type="module" src="/react.js"></script>', 12)


@pytest.mark.tools
def test_the_example_for_vue_runs(project: Project) -> None:
    (project.directory / "compile.js").write_text(COMPILE)
    (project.directory / "Job.js").write_text(project.run("node", "compile.js", text=block("Vue", "vue")))
    start = f"""
import {{ createApp }} from 'vue';
import Job from './Job.js';
const [id, token] = ['job', 'token'].map((name) => new URL(location).searchParams.get(name));
createApp(Job, {{ url: '{project.daemon.url}', id, token }}).mount('#app');
"""
    project.pages["/vue.js"] = project.bundle("vue.js", start)
    project.shows_a_job('<div id="app"></div><script type="module" src="/vue.js"></script>', 13)


@pytest.mark.tools
def test_the_example_for_htmx_runs(project: Project) -> None:
    modules = project.directory / "node_modules"
    project.pages["/htmx.js"] = (modules / "htmx.org" / "dist" / "htmx.min.js").read_text()
    project.pages["/sse.js"] = (modules / "htmx-ext-sse" / "dist" / "sse.min.js").read_text()
    project.shows_a_job(block("htmx", "html"), 14)
