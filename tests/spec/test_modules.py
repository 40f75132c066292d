"""House figures, measured on the package itself (models.md A2, DESIGN)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "zemosaicd"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = ("core", "science", "work")
LONGEST_MODULE, LONGEST_FUNCTION = 420, 60
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(path: Path) -> ast.Module:
    """The module's syntax."""
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[Function]:
    """All functions and methods, inner ones included."""
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def public(module: ast.Module) -> dict[str, Function | ast.ClassDef]:
    """Functions and classes that a module shows: no leading underscore."""
    shown = [node for node in module.body if isinstance(node, Function | ast.ClassDef)]
    return {node.name: node for node in shown if not node.name.startswith("_")}


@each_module
def test_a_module_is_short(path: Path) -> None:
    """A module is one noun; what grows over 420 lines is two."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE


@each_module
def test_a_function_fits_on_a_screen(path: Path) -> None:
    """60 lines, docstring included."""
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path) if f.end_lineno}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}


@each_module
def test_everything_public_says_what_it_is(path: Path) -> None:
    """Every module, public class and public function has a docstring."""
    module = tree(path)
    silent = [name for name, node in public(module).items() if not ast.get_docstring(node)]
    assert silent == []
    assert ast.get_docstring(module) or not module.body


@each_module
def test_nothing_prints_but_the_command_line(path: Path) -> None:
    """The package speaks through its log; only the commands, whose output it is, write to stdout."""
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    assert "print" not in names
    assert not names & {"eval", "exec", "breakpoint", "input"}


@each_module
def test_no_error_is_swallowed(path: Path) -> None:
    """No bare except, and none whose whole answer is to pass."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            only_pass = all(isinstance(s, ast.Pass) for s in node.body)
            assert not (broad and only_pass), f"line {node.lineno}: swallowed"


@each_module
def test_nothing_is_left_undone(path: Path) -> None:
    """No notes to oneself."""
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text(encoding="utf-8"))


@each_module
def test_dataclasses_of_the_lower_storeys_are_frozen(path: Path) -> None:
    """Values do not change under those who hold them; only the fold's own state does (core.lifecycle)."""
    if path.parent.name not in ROOMS and path.name != "model.py":
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef) and node.name not in ("SessionState", "FrameRecord"):
            for mark in node.decorator_list:
                text = ast.unparse(mark)
                if text.startswith("dataclass"):
                    assert "frozen=True" in text, f"{node.name} can change"
                    assert "slots=True" in text, f"{node.name} has no slots"


def test_kernels_say_shape_and_unit() -> None:
    """Public functions of science that take arrays name shapes or types in their docstrings (models.md A4)."""
    silent = []
    for path in sorted((PACKAGE / "science").glob("*.py")):
        for name, node in public(tree(path)).items():
            if not isinstance(node, Function):
                continue
            arrays = re.search(r"NDArray|Pixels|F32|F64|Float32|Flags|Counts", ast.unparse(node.args))
            text = ast.get_docstring(node) or ""
            if arrays and not re.search(r"\([^)]*[,\w]\)|float|bool|uint|px|ADU|degree|arcsec", text):
                silent.append(f"{path.name}: {name}")
    assert silent == []


@each_module
def test_kernels_have_no_linear_algebra(path: Path) -> None:
    """numba would ask scipy for it; workers start without (work.jobs.start_kernels)."""
    for node in functions(path):
        if any("njit" in ast.unparse(mark) for mark in node.decorator_list):
            inside = list(ast.walk(node))
            assert not any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.MatMult) for n in inside), node.name
            names = {n.attr for n in inside if isinstance(n, ast.Attribute)}
            assert not names & {"linalg", "dot", "vdot", "matmul"}, node.name
