"""Imports point the way the data flows. A new kind of import needs a change of the table below."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import progressd
import pytest

ROOT = Path(progressd.__file__).parent

# The packages of progressd, bottom up, and the lower packages that each may import.
MAY_IMPORT = {
    "core": "",
    "languages": "",
    "detect": "core",
    "system": "core",
    "config": "core system",
    "client": "core detect system",
    "store": "core system",
    "broadcast": "core system",
    "auth": "core system config",
    "files": "core system config store",
    "net": "core system config auth",
    "commit_log": "core system",
    "engine": "core system store broadcast auth files net commit_log",
    "producers": "core system config broadcast net engine",
    "runner": "core detect system config files net engine producers",
    "ws": "core system config broadcast auth net engine producers",
    "http": "core languages system config store broadcast auth files net engine producers ws",
    "admin": "core system config store auth files net http",
    "lifecycle": "core engine ws http",
    "app": "core system config store broadcast auth files net commit_log engine producers runner ws http lifecycle",
    "cli": "core languages detect system config auth client app admin",
    "integrations": "core detect client",
    "tqdm": "integrations",
    "__main__": "cli",
}
CORE_MAY_IMPORT = {
    "collections",
    "datetime",
    "difflib",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "math",
    "msgspec",
    "re",
    "re2",
    "typing",
}
ONLY_IN = {
    "sqlite3": {"store"},
    "hypercorn": {"http"},
    "quart": {"http"},
    "quart_trio": {"http"},
    "trio_websocket": {"ws", "client"},
    "wsproto": {"ws", "client"},
    "jwt": {"auth"},
    "subprocess": {"admin", "runner", "client", "system", "store"},
    "rich": {"cli", "integrations"},
    "click": {"cli"},
    "asyncio": {"client"},
    "anyio": {"client"},
    "logging": {"system", "http", "client", "integrations"},
    "prometheus_client": {"engine", "http", "store"},
    "re2": {"core"},
}


def module_of(path: Path) -> str:
    """Return the dotted name below progressd: "core.job", and "core" for a package itself."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_in(path: Path) -> Iterator[str]:
    """Yield every import of the file, at any depth; names after `from x import` are modules if such a file exists."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module, names, 0):
                assert module is not None
                inside = ROOT.parent.joinpath(*module.split("."))
                for alias in names:
                    is_module = (inside / alias.name).is_dir() or (inside / f"{alias.name}.py").is_file()
                    yield f"{module}.{alias.name}" if is_module else module
            case ast.ImportFrom():
                pytest.fail(f"{path}:{node.lineno}: imports are absolute")


MODULES = {module_of(path): path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"}


@cache  # not when the tests are collected, which each worker does
def imports(module: str) -> set[str]:
    """Return the imports of a module."""
    return set(imports_in(MODULES[module]))


def own(module: str) -> set[str]:
    """Return the imports of a module that are modules of progressd."""
    return {name.removeprefix("progressd.") for name in imports(module) if name.startswith("progressd.")}


def part(module: str) -> str:
    return module.partition(".")[0]


def test_every_package_is_in_the_table() -> None:
    assert {part(module) for module in MODULES} <= MAY_IMPORT.keys()


def test_the_table_has_no_cycle() -> None:
    order = list(MAY_IMPORT)
    for name, allowed in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(name) for other in allowed.split())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_lower_packages(module: str) -> None:
    allowed = {part(module), *MAY_IMPORT[part(module)].split()}
    assert {part(other) for other in own(module)} <= allowed


def test_modules_have_no_import_cycle() -> None:
    assert list(graphlib.TopologicalSorter({module: own(module) for module in MODULES}).static_order())


@pytest.mark.parametrize("module", sorted(module for module in MODULES if part(module) == "core"))
def test_the_core_does_no_io(module: str) -> None:
    assert {part(name) for name in imports(module)} <= {*CORE_MAY_IMPORT, "progressd"}


def test_only_app_and_admin_know_the_concrete_store() -> None:
    concrete = {module for module in MODULES if any(name.startswith("store.") for name in own(module) - {"store.base"})}
    assert {part(module) for module in concrete} <= {"app", "admin", "store"}


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_used_only_in_its_packages(library: str) -> None:
    users = {part(module) for module in MODULES if library in {part(name) for name in imports(module)}}
    assert users <= ONLY_IN[library]


def test_importing_the_core_loads_no_io_library() -> None:
    # in a fresh interpreter: this one has loaded everything
    modules = ", ".join(f"progressd.{module}" for module in MODULES if part(module) == "core")
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "progressd.core.job" in loaded
    assert not {"trio", "sqlite3", "socket", "quart", "hypercorn", "trio_websocket", "asyncio"} & set(loaded)


def test_the_architecture_page_names_files_that_exist() -> None:
    repository = ROOT.parent.parent
    missing = []
    for line in (repository / "docs" / "architecture.md").read_text().splitlines():
        names = re.findall(r"`([\w./-]*(?:/|\.(?:py|js|css|md)))`", line)
        folders = {ROOT, repository} | {folder / name for name in names for folder in (ROOT, repository)}
        folders |= {folder.parent for folder in folders}  # a row may leave out the folder of later files
        missing += [name for name in names if not any((folder / name).exists() for folder in folders)]
    assert missing == []
