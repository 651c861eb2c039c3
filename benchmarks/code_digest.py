"""Which code a result depends on, as a digest of the sources that it runs."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("services", "simulator")
"""Those whose modules count; what a library does is not looked at."""


def code_digest(modules: Sequence[str], apart_from: Container[str] = ()) -> str:
    """Return a digest of these modules and of all that they import, directly or not.

    A name that a package only passes on counts as imported from the module that defines it, so that of a package only
    what is used counts.

    Args:
        modules: dotted names.
        apart_from: modules that neither count nor are followed.

    Raises:
        FileNotFoundError: there is no such module.
    """
    digest = hashlib.sha256()
    for module in sorted(_closure(modules, apart_from)):
        digest.update(f"{module}\0".encode() + _file(module).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _closure(modules: Sequence[str], apart_from: Container[str]) -> set[str]:
    found: set[str] = set()
    ahead = list(modules)
    while ahead:
        module = ahead.pop()
        if module not in found and module not in apart_from:
            found.add(module)
            ahead.extend(target for _, target in _imports(module))
    return found


@functools.cache
def _imports(module: str) -> tuple[tuple[str, str], ...]:
    """Names, and the modules of this project that define them."""
    return tuple(_imported(ast.parse(_file(module).read_text())))


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and _counts(node.module):
            for alias in node.names:
                yield alias.asname or alias.name, _home(node.module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _counts(alias.name):
                    yield alias.name, alias.name


def _home(module: str, name: str) -> str:
    """Where a name is defined that is imported from a module."""
    if not _is_package(module):
        return module
    if _exists(f"{module}.{name}"):
        return f"{module}.{name}"
    return dict(_imports(module)).get(name, module)


def _counts(module: str) -> bool:
    return module.split(".", 1)[0] in PACKAGES


def _is_package(module: str) -> bool:
    return ROOT.joinpath(*module.split("."), "__init__.py").exists()


def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or path.joinpath("__init__.py").exists()


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if _is_package(module) else path.with_suffix(".py")
