"""Private names of other libraries: which modules use them, and with which versions they were checked."""

import ast
from importlib.metadata import version
from pathlib import Path

import progressd
import pytest

ROOT = Path(progressd.__file__).parent
LIBRARIES = {"h11", "hypercorn", "quart", "quart_trio", "trio_websocket", "wsproto"}
MAY_USE_PRIVATE = {"http/server/hypercorn.py", "http/server/protocol.py", "http/zip_body.py", "ws/protocol.py"}
CHECKED = {
    "h11": {"0.16.0"},
    "hypercorn": {"0.17.3", "0.18.0"},
    "trio-websocket": {"0.12.2"},
    "wsproto": {"1.3.2"},
}
PUBLIC = {"_replace", "_asdict"}  # methods of named tuples


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def foreign_private_names(path: Path) -> set[str]:
    """Return the private attributes that a module uses and does not define, if it imports one of the libraries."""
    imported, defined, used = set[str](), set[str](), set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names):
                imported |= {alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(str(module)):
                imported.add(module.partition(".")[0])
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.Name(name, ast.Store()):
                defined.add(name)
            case ast.Attribute(ast.Name("self"), name, ast.Store()):
                defined.add(name)
            case ast.Attribute(_, name) if is_private(name):
                used.add(name)
    return used - defined if imported & LIBRARIES else set()


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_uses_no_private_names_of_libraries(path: Path) -> None:
    assert foreign_private_names(path) == set() or str(path.relative_to(ROOT)) in MAY_USE_PRIVATE


@pytest.mark.parametrize("library", sorted(CHECKED))
def test_private_names_were_checked_with_the_installed_version(library: str) -> None:
    assert version(library) in CHECKED[library], f"check {MAY_USE_PRIVATE} with this version, and add it here"
