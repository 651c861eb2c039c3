"""The description of the Python client, made from the docstrings of `slos_serve`."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator

import slos_serve
from cli.reference.page import table
from cli.reference.protocol import field_comments

MESSAGES = {"Sampling": "SamplingParams", "Tokens": "TokenChunk", "Scheduling": "SchedulingState"}
"""Messages that say what a class says under another name; a field without a docstring has its message's comment."""
MADE_BY_USERS = ("Client", "AsyncClient")
"""Classes whose constructor is shown; programs get objects of the others that have one."""
FIRST = ("Client", "AsyncClient", "Stream", "AsyncStream", "Session", "AsyncSession", "Contract")
"""Names that a reader looks for first; the others follow in alphabetical order."""


def client_sections() -> str:
    """Write a section for every public name of the client."""
    names = [*FIRST, *(name for name in slos_serve.__all__ if name not in FIRST)]
    return "\n".join(_section(name, getattr(slos_serve, name)) for name in names)


def _section(name: str, thing: object) -> str:
    if not isinstance(thing, type):
        return f"## {name}\n\nAn alias of `{_shown(thing)}`.\n"
    source = _class_source(thing)
    bases = [base.__name__ for base in thing.__bases__ if base.__module__.startswith("slos_serve")]
    parent = f" ({', '.join(bases)})" if bases else ""
    parts = [f"## {name}{parent}\n\n{_doc(source)}\n"]
    if fields := list(_fields(source)):
        parts.append(table(("field", "type", "default", "meaning"), fields))
    if methods := list(_methods(source)):
        parts.append(table(("method", "meaning"), methods))
    return "\n".join(parts)


def _shown(thing: object) -> str:
    return str(thing).replace("slos_serve.", "").replace("collections.abc.", "").replace("events.", "")


def _class_source(kind: type) -> ast.ClassDef:
    tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)


def _doc(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return a docstring whose sections of arguments and errors are paragraphs of Markdown."""
    text = ast.get_docstring(node) or ""
    if "Args:" not in text:
        return text
    # What is indented twice goes on with the line above.
    joined = re.sub(r"\n {8}", " ", text)
    return joined.replace("Args:\n", "Arguments:\n\n").replace("    ", "- ")


def _fields(source: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    comments = field_comments(MESSAGES.get(source.name, source.name))
    following = [*source.body[1:], None]
    for node, after in zip(source.body, following, strict=True):
        said = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            said = after.value.value
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                default = "" if value is None else f"`{ast.unparse(value)}`"
                yield f"`{name}`", f"`{ast.unparse(annotation)}`", default, said or comments.get(name, "")
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if not name.startswith("_"):
                yield f"`{name}`", "", f"`{ast.unparse(value)}`", said


def _methods(source: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for node in source.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_") and not (node.name == "__init__" and source.name in MADE_BY_USERS):
            continue
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if "property" in decorators:
            yield f"`{node.name}`: `{ast.unparse(node.returns) if node.returns else ''}`", _doc(node)
            continue
        arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("cls, ").removeprefix("self")
        result = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
        name = source.name if node.name == "__init__" else node.name
        waits = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
        yield f"`{waits}{name}({arguments}){result}`", _doc(node)
