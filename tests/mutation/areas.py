"""The areas of the code that are mutated, each with the tests that should notice."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

AREAS_FILE = Path(__file__).with_name("areas.toml")


@dataclass(frozen=True, slots=True)
class Area:
    """One area: what is changed, and what is run to see whether the change is noticed."""

    name: str
    sources: tuple[Path, ...]
    """Files that are mutated, relative to the repository."""
    tests: tuple[str, ...]
    """Arguments of pytest that select the tests."""
    interpreted: bool
    """Compiled functions run as plain Python, so that no machine code of before the change answers for it."""


def _expand(root: Path, patterns: list[str], area: str) -> tuple[Path, ...]:
    found: set[Path] = set()
    for pattern in patterns:
        matches = [path.relative_to(root) for path in root.glob(pattern)]
        if not matches:
            raise ValueError(f"area {area}: nothing matches {pattern!r}")
        found.update(path for path in matches if path.name != "__init__.py")
    return tuple(sorted(found))


def load_areas(root: Path, file: Path = AREAS_FILE) -> dict[str, Area]:
    """Read the areas by name.

    Raises:
        ValueError: a pattern of files matches nothing, which happens when code was moved.
    """
    areas = {}
    for name, entry in tomllib.loads(file.read_text())["areas"].items():
        for test in entry["tests"]:
            if not (root / test).exists():
                raise ValueError(f"area {name}: no tests at {test}")
        areas[name] = Area(
            name=name,
            sources=_expand(root, entry["sources"], name),
            tests=tuple(entry["tests"]),
            interpreted=entry.get("interpreted", False),
        )
    return areas
