"""The generated page is not stale and leaves nothing out."""

import ast
import inspect
from pathlib import Path

from relayd import log
from relayd.admin import reference

ROOT = Path(__file__).parents[3]


def test_the_page_is_not_stale() -> None:
    """If this fails: python -m relayd.admin.reference"""
    assert (ROOT / reference.FILE).read_text() == reference.page()


def test_every_event_has_a_row() -> None:
    constants = {
        node.args[1].value
        for node in ast.walk(ast.parse(inspect.getsource(log)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_emit" and isinstance(node.args[1], ast.Constant)
    }
    assert len(constants) > 10
    for event in (*constants, "delivered", "expired"):
        assert f"`{event}`" in reference.page()


def test_alerts_speak_of_metrics_that_exist() -> None:
    import re

    rules = (ROOT / "deploy/prometheus-rules.yml").read_text()
    names = set(re.findall(r"relayd_\w+", rules))
    assert len(names) > 5
    for name in names:
        assert f"| `{name}` |" in reference.page(), name
