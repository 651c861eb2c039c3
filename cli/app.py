"""The commands of `slos-serve`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import bench, clusters, demo, describe, generate, health, replay, sizing, top
from services.config.load import ConfigurationError, load_settings
from services.config.settings import Settings
from services.telemetry import logs

app = typer.Typer(
    name="slos-serve",
    help="An LLM serving cluster that promises latency and keeps the promise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; see `slos-serve config`. Environment variables win.")
]


@app.command()
def router(config: Config = None) -> None:
    """Run a router until SIGTERM, in `router.processes` processes on one port."""
    from router.processes import run

    _run("router", config, run)


@app.command()
def prefill_worker(config: Config = None) -> None:
    """Run a prefill worker until SIGTERM."""
    from prefill_worker.app import serve

    _run_service("prefill-worker", config, serve)


@app.command()
def decode_worker(config: Config = None) -> None:
    """Run a decode worker until SIGTERM."""
    from decode_worker.app import serve

    _run_service("decode-worker", config, serve)


@app.command()
def gateway(config: Config = None) -> None:
    """Run an OpenAI-compatible HTTP gateway until SIGTERM."""
    from gateway.app import serve

    _run_service("gateway", config, serve)


app.command()(clusters.up)
app.command()(clusters.down)
app.command()(clusters.status)
app.command()(top.top)
app.command()(generate.generate)
app.command()(demo.demo)
app.command()(health.health)
app.command()(sizing.plan)
app.command()(replay.replay)
app.command(name="config")(describe.config)
app.add_typer(bench.bench, name="bench")


def _run_service(name: str, config: Path | None, serve: Callable[[Settings], Coroutine[Any, Any, int]]) -> None:
    _run(name, config, lambda settings: asyncio.run(serve(settings)))


def _run(name: str, config: Path | None, run: Callable[[Settings], int]) -> None:
    try:
        settings = load_settings(config)
    except ConfigurationError as error:
        typer.echo(f"configuration: {error}", err=True)
        raise typer.Exit(2) from error
    logs.configure(settings.log.level, name, settings.log.format)
    raise typer.Exit(run(settings))


def main() -> None:
    app()


if __name__ == "__main__":
    main()
