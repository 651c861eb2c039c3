"""The public surface: names, fields, signatures. A change of `tests/data/client_surface.txt` is a change for users."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import slos_serve

RECORDED = Path(__file__).parents[2] / "data" / "client_surface.txt"


def describe() -> Iterator[str]:
    for name in sorted(slos_serve.__all__):
        thing = getattr(slos_serve, name)
        if not inspect.isclass(thing):
            yield f"{name} = {thing}"
        elif issubclass(thing, enum.Enum):
            yield f"enum {name}: {', '.join(member.name for member in thing)}"
        elif typing.is_typeddict(thing):
            yield f"options {name}"
            yield from (
                f"    {field}: {kind.__forward_arg__}" for field, kind in inspect.get_annotations(thing).items()
            )
        else:
            yield f"class {name}({', '.join(base.__name__ for base in thing.__bases__)})"
            yield from (f"    {line}" for line in members(thing))


def members(thing: type) -> Iterator[str]:
    if dataclasses.is_dataclass(thing):
        yield "frozen" if thing.__dataclass_params__.frozen else "NOT FROZEN"  # type: ignore[attr-defined]
        yield f"__init__{inspect.signature(thing)}"
    for name, member in sorted(vars(thing).items()):
        plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if isinstance(member, property):
            assert member.fget is not None
            yield f"{name} -> {inspect.signature(member.fget).return_annotation}"
        elif inspect.isfunction(plain):
            public = not name.startswith("_") or (name == "__init__" and not dataclasses.is_dataclass(thing))
            if public or name in {"__aenter__", "__enter__", "__anext__", "__next__"}:
                prefix = "async " if inspect.iscoroutinefunction(plain) else ""
                yield f"{prefix}{name}{inspect.signature(plain)}"


def test_the_public_surface_is_the_recorded_one() -> None:
    surface = "\n".join(describe()) + "\n"
    assert surface == RECORDED.read_text(), (
        "the client's surface changed; if meant, run `python -m tests.unit.client.test_surface` and say so in the notes"
    )


def test_the_client_needs_neither_the_cluster_nor_an_engine() -> None:
    lists = "import slos_serve, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", lists], check=True, capture_output=True, text=True, timeout=60)
    heavy = {"vllm", "torch", "numpy", "pydantic", "services", "router", "redis", "grpc_status", "fastapi", "rich"}
    assert not heavy & set(loaded.stdout.split())


if __name__ == "__main__":
    RECORDED.write_text("\n".join(describe()) + "\n")
