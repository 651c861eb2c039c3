"""The tree of options: what each option takes, and which one a misspelt name probably means."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union

from pydantic import BaseModel

MOST_SUGGESTIONS = 3
CLOSE = 0.7
"""Similarity of two names, between 0 and 1, from which one may be a misspelling of the other."""

Step = str | int
"""One step into the tree: the name of an option or section, or a position in a list."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The kind of value that an option takes."""

    annotation: Any
    """Type of the value, without `None` and without constraints."""
    optional: bool
    """True if the option may be unset."""

    @property
    def section(self) -> type[BaseModel] | None:
        """The section that the value is; None if it is none."""
        return self.annotation if _is_section(self.annotation) else None

    @property
    def items(self) -> Kind | None:
        """The kind of each item of a list; None if the value is no list."""
        if typing.get_origin(self.annotation) is not tuple:
            return None
        return kind_of(typing.get_args(self.annotation)[0])

    @property
    def entries(self) -> Kind | None:
        """The kind of each entry of a table whose names are free; None if the value is no such table."""
        if typing.get_origin(self.annotation) is not dict:
            return None
        return kind_of(typing.get_args(self.annotation)[1])

    def step(self, step: Step) -> Kind | None:
        """Return the kind one step further in; None if nothing is there."""
        if isinstance(step, int):
            return self.items
        if self.section is not None:
            field = self.section.model_fields.get(step)
            return None if field is None else kind_of(field.annotation)
        return self.entries


def kind_of(annotation: Any) -> Kind:
    """Return the kind of value that an annotation describes."""
    optional = False
    while True:
        origin = typing.get_origin(annotation)
        if origin is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            members = typing.get_args(annotation)
            optional = optional or types.NoneType in members
            others = [member for member in members if member is not types.NoneType]
            if len(others) > 1:
                # A choice such as a number or a word, which validation tells apart.
                return Kind(annotation, optional)
            annotation = others[0]
        else:
            return Kind(annotation, optional)


def find(root: type[BaseModel], path: Sequence[Step]) -> Kind | None:
    """Return what the option or section at a path takes; None if there is none."""
    kind: Kind | None = Kind(root, optional=False)
    for step in path:
        kind = None if kind is None else kind.step(step)
    return kind


def suggestions(root: type[BaseModel], path: Sequence[Step]) -> list[tuple[str, ...]]:
    """Return the options or sections that a path probably means, at most three, the likeliest first.

    A name that resembles one beside it is taken for that one, and a name that exists elsewhere for that. Where not even
    the section is known, the whole path counts.
    """
    named = tuple(str(step) for step in path)
    everything = list(_paths(root))
    parent = find(root, path[:-1])
    section = None if parent is None else parent.section
    beside = [] if section is None else [(*named[:-1], name) for name in section.model_fields]
    if section is None or section is root:
        close = _closest(".".join(named), {".".join(known): known for known in (*beside, *everything)})
    else:
        close = _closest(named[-1], {known[-1]: known for known in beside})
    if close:
        return close
    return [known for known in everything if known[-1] == named[-1]][:MOST_SUGGESTIONS]


def _closest(name: str, known: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [known[close] for close in difflib.get_close_matches(name, known, 1, CLOSE)]


def _paths(section: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        inner = kind_of(field.annotation).section
        if inner is None:
            yield (*above, name)
        else:
            yield from _paths(inner, (*above, name))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
