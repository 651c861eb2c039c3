"""The option `--version` of the command line and of every service."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer


def _show(wanted: bool) -> None:
    if wanted:
        typer.echo(f"slos-serve {version('slos-serve')}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_show, is_eager=True, help="Print the version and exit.")]
