"""The page of every metric and every log event, made from `metrics` and `log`: docs/METRICS-AND-EVENTS.md.

`python -m relayd.admin.reference` writes it anew; a test fails when it is stale. Nobody calls this while mail flows.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import Metric

from relayd import log, metrics

FILE = Path("docs/METRICS-AND-EVENTS.md")

_HEADER = """\
# Metrics and log events

Made by `python -m relayd.admin.reference` from `relayd/metrics.py` and `relayd/log.py`; change it there.

## Metrics

On `GET /metrics` of `[admin] bind`, as Prometheus text or OpenMetrics. Beside these there are `process_…` (CPU, memory,
descriptors; Linux) and `python_gc_…`, where several processes serve one series for each, labelled `worker`: its number,
or `supervisor`. All others are of the whole relay. Labels take values of closed sets only: never a domain, address,
user or host.

| metric | type | labels | meaning |
|---|---|---|---|
"""

_EVENTS = """
## Log events

One JSON object on a line, to `[log] file`. Each has `event`, `level` and `time` (UTC, milliseconds), and what stands
here. Passwords and message content are never logged; text of peers is escaped.

| event | level | fields | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    return _HEADER + "".join(sorted(_metric_rows())) + _EVENTS + "".join(_event_rows())


def _metric_rows() -> Iterator[str]:
    unwatch = metrics.watch_queue(lambda: dict.fromkeys(metrics.STATES, 0), lambda: 0.0)
    try:
        families = [family for family in metrics.REGISTRY.collect() if family.name.startswith("relayd_")]
    finally:
        unwatch()
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        yield f"| `{name}` | {family.type} | {_labels(family)} | {family.documentation} |\n"


def _labels(family: Metric) -> str:
    values: dict[str, list[str]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            if label != "le" and value not in values.setdefault(label, []):
                values[label].append(value)
    # Reply codes are too many to name, and which have been seen is this process's affair.
    return "; ".join(name if name == "code" else f"{name}: {', '.join(known)}" for name, known in values.items())


def _event_rows() -> Iterator[str]:
    for function in ast.parse(inspect.getsource(log)).body:
        if isinstance(function, ast.FunctionDef):
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and (row := _event_row(function, call)):
                    yield row


def _event_row(function: ast.FunctionDef, call: ast.Call) -> str:
    """A row for `_emit(LEVEL, EVENT, …)`, or for the line of a hot event, which has both among its fields.

    The event's name may be a variable that the docstring explains.
    """
    facts = {keyword.arg: keyword.value for keyword in call.keywords}
    if ast.unparse(call.func) == "_emit":
        cause, event = call.args
        level = cause.attr.lower() if isinstance(cause, ast.Attribute) else "by cause"
    elif facts.pop("time", None) is not None:
        level, event = ast.literal_eval(facts.pop("level")), facts.pop("event")
    else:
        return ""
    name = ", ".join(sorted(_names(event)))
    fields = ", ".join(f"`{fact}`" if fact else "…" for fact in facts)
    text = " ".join((ast.get_docstring(function) or "").split())
    return f"| {name} | {level} | {fields} | {text} |\n"


def _names(argument: ast.expr) -> list[str]:
    """The event's name, or those it may take: the states in which an attempt ends."""
    return [f"`{argument.value!s}`"] if isinstance(argument, ast.Constant) else [f"`{state}`" for state in _STATES]


_STATES = ("delivered", "deferred", "failed", "expired")


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
