"""The list of commands: what it says, and what it costs to read."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.app import Commands, app

HEAVY = {"grpc", "numba", "numpy", "redis", "torch", "slos_serve", "benchmarks"}
"""Packages that take tenths of a second to import."""

_IMPORTED = """
import sys
from typer.testing import CliRunner
from cli.app import app
result = CliRunner().invoke(app, sys.argv[1:])
assert result.exit_code == 0, result.output
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def packages_imported_by(*arguments: str) -> set[str]:
    ran = subprocess.run([sys.executable, "-c", _IMPORTED, *arguments], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_help_imports_nothing_heavy() -> None:
    imported = packages_imported_by("--help")
    assert "cli" in imported
    assert not imported & {*HEAVY, "pydantic"}


def test_help_of_the_benchmarks_imports_none_of_them() -> None:
    """typer itself imports pydantic to read the options of a function."""
    assert not packages_imported_by("bench", "--help") & HEAVY


def test_options_are_read_without_the_planner() -> None:
    """Every program reads them at its start; workers and gateways never plan."""
    imported = packages_imported_by("config")
    assert "pydantic" in imported
    assert imported.isdisjoint({"numba", "grpc", "torch"})


def _real(name: str) -> Any:
    return typer.main.get_group(app).commands[name]


@pytest.mark.parametrize("name", list(Commands.table))
def test_what_the_list_says_of_a_command_is_the_beginning_of_its_own_help(name: str) -> None:
    assert Commands.table[name].summary == (_real(name).help or "").splitlines()[0]


def test_the_list_names_every_command_with_its_summary() -> None:
    listed = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300"}).output.split())
    for name, known in Commands.table.items():
        assert f"{name} {known.summary}" in listed


def test_a_command_is_called_by_its_name_with_its_own_options() -> None:
    result = CliRunner().invoke(app, ["health", "--help"])
    assert result.exit_code == 0
    assert "slos-serve health" in result.output
    assert "ADDRESS" in result.output


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(app, ["statsu"])
    assert result.exit_code == 2
    assert "status" in result.output
