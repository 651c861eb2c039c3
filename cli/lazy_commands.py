"""Commands whose modules are imported when they are called, not when they are listed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """One command, as it is known before its module is imported."""

    place: str
    """Module and attribute of its function, or of the `typer.Typer` that groups its commands, as `module:attribute`."""
    summary: str
    """First line of its help."""


class LazyCommandGroup(TyperGroup):
    """A group that lists its commands from `table` and imports the module of the one that is called.

    A subclass sets `table`. Of a large program most modules serve one command each, and reading the list of commands
    should not cost the import of all of them.
    """

    table: ClassVar[Mapping[str, LazyCommand]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands(self.table)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        loading = self.commands
        self.commands = {name: TyperCommand(name, help=known.summary) for name, known in self.table.items()}
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = loading


class _Commands(MutableMapping[str, Any]):
    """The commands of a group by name. Only asking for one imports its module."""

    def __init__(self, table: Mapping[str, LazyCommand]) -> None:
        self._table = dict(table)
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(name, self._table[name].place)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command
        self._table.setdefault(name, LazyCommand("", command.help or ""))

    def __delitem__(self, name: str) -> None:
        del self._table[name]
        self._loaded.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table


def _load(name: str, place: str) -> Any:
    """Import a command and return it as typer runs it."""
    module, _, attribute = place.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    return command
