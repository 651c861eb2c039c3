"""Only the methods of `LiveRequest` write its fields."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

import router
from router.requests.live_request import LiveRequest

OWNER = "requests/live_request.py"
FIELDS = {field.name for field in fields(LiveRequest)}
CHANGING = {"enter", "entered", "note_tokens", "end", "end_stage", "append", "extend", "feed", "flush"}
"""Methods of a request's parts that change them."""
PARTS = {"meter", "clock", "generated", "text", "stops"}
ROOT = Path(router.__path__[0])
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def writes(source: str) -> list[str]:
    """Return the expressions that assign a field of a request, or change one of its parts."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=field, value=owner, ctx=ast.Store()):
                if field in FIELDS and not is_self(owner):
                    found.append(ast.unparse(node))
            case ast.Call(func=ast.Attribute(attr=method, value=ast.Attribute(attr=part, value=owner))):
                if method in CHANGING and part in PARTS and not is_self(owner):
                    found.append(ast.unparse(node))
    return found


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


@pytest.mark.parametrize("module", MODULES)
def test_no_other_module_writes_a_request(module: str) -> None:
    source = (ROOT / module).read_text()
    if module != OWNER and "LiveRequest" in source:
        assert writes(source) == []


def test_a_write_is_found() -> None:
    assert writes("request.attempt += 1") == ["request.attempt"]
    assert writes("lease, request.lease = request.lease, None") == ["request.lease"]
    assert writes("request.clock.enter(Phase.RESTART, now_s)") == ["request.clock.enter(Phase.RESTART, now_s)"]
    assert writes("self.attempt = 3") == []
