"""The size budget of the source: functions short, modules and classes bounded, no room for leftovers."""

import ast
import statistics
from pathlib import Path

import pytest

import relayd

PACKAGE = Path(relayd.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "util", "helpers", "common", "base", "manager", "core", "misc"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def body_lines(function: Function) -> int:
    """Lines of the body, the docstring aside."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def functions() -> dict[str, int]:
    return {
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}": body_lines(node)
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, Function)
    }


def test_functions_are_short() -> None:
    lengths = functions()
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert statistics.median(lengths.values()) <= 8
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 30


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_keeps_the_budget(path: Path) -> None:
    module = tree(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
    assert ast.get_docstring(module), "a module opens with what it owns and what it must not know"
    assert FORBIDDEN_NAMES.isdisjoint(path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 300, node.name
            assert sum(isinstance(part, Function) for part in node.body) <= 20, node.name


def test_packages_only_say_what_they_own() -> None:
    sub_packages = [path for path in MODULES if path.name == "__init__.py" and path.parent != PACKAGE]
    assert all(len(tree(path).body) == 1 for path in sub_packages)
