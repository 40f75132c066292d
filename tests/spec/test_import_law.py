"""The house has storeys; nobody reaches upstairs (DESIGN, "Three storeys, one stair")."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "zemosaicd"

ALLOWED = {
    "model": set(),
    "sphere": {"model"},
    "codec": set(),
    "parts": set(),
    "settings": {"model"},
    "checks": {"model", "settings"},
    "core": {"model", "sphere", "parts", "codec", "core"},
    "science": {"model", "sphere", "parts", "science"},
    "work": {"model", "sphere", "codec", "core", "science", "work"},
}
FORBIDDEN_IN_CORE = {"asyncio", "time", "os", "pathlib", "numpy", "sqlite3", "subprocess", "random", "scipy", "astropy"}
FORBIDDEN_IN_SCIENCE = {"asyncio", "time", "os", "pathlib", "sqlite3", "logging", "structlog", "subprocess", "random"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_downwards(path: Path) -> None:
    """A module of a lower storey never imports one of a higher storey."""
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room not in ALLOWED:
        return
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("zemosaicd.")} - {"__version__"}
    assert rooms <= ALLOWED[room], f"{path.name} imports {rooms - ALLOWED[room]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_pure_storeys_know_no_world(path: Path) -> None:
    """core knows no clock, disk, loop or numpy; science knows no clock, disk, logging or global randomness."""
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    forbidden = {"core": FORBIDDEN_IN_CORE, "model": FORBIDDEN_IN_CORE, "sphere": FORBIDDEN_IN_CORE}.get(room, set())
    if room == "science":
        forbidden = FORBIDDEN_IN_SCIENCE
    top = {name.split(".")[0] for name in imported(path)}
    assert not top & forbidden, f"{path.name} imports {top & forbidden}"
