"""The commands that run one program of a cluster in the foreground: router, workers and gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.version import Version
from services.audit import AuditFileError
from services.config.load import ConfigurationError, load_settings
from services.config.logging import configure_logging
from services.config.settings import Settings

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; see `slos-serve config`. Environment variables win.")
]


def router(config: Config = None, version: Version = False) -> None:  # noqa: ARG001 - its callback has acted
    """Run a router until SIGTERM, in `router.processes` processes on one port."""
    from router.processes import run

    _run("router", config, run)


def prefill_worker(config: Config = None, version: Version = False) -> None:  # noqa: ARG001 - its callback has acted
    """Run a prefill worker until SIGTERM."""
    from prefill_worker.app import serve

    _run_service("prefill-worker", config, serve)


def decode_worker(config: Config = None, version: Version = False) -> None:  # noqa: ARG001 - its callback has acted
    """Run a decode worker until SIGTERM."""
    from decode_worker.app import serve

    _run_service("decode-worker", config, serve)


def gateway(config: Config = None, version: Version = False) -> None:  # noqa: ARG001 - its callback has acted
    """Run an OpenAI-compatible HTTP gateway until SIGTERM."""
    from gateway.app import serve

    _run_service("gateway", config, serve)


def _run_service(name: str, config: Path | None, serve: Callable[[Settings], Coroutine[Any, Any, int]]) -> None:
    _run(name, config, lambda settings: asyncio.run(serve(settings)))


def _run(name: str, config: Path | None, run: Callable[[Settings], int]) -> None:
    try:
        settings = load_settings(config)
    except ConfigurationError as error:
        typer.echo(f"configuration: {error}", err=True)
        raise typer.Exit(2) from error
    try:
        configure_logging(settings.log, name)
    except AuditFileError as error:
        # Whoever asks for an audit log is not served without one.
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(run(settings))
