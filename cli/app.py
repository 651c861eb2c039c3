"""The commands of `slos-serve`, each with the place of its code; none of it is imported before it is called."""

from __future__ import annotations

import os
import sys
from typing import ClassVar

import typer

from cli.lazy_commands import LazyCommand, LazyCommandGroup
from cli.version import Version
from services.network.proxies import reach_directly
from services.terminal.streams import prepare_streams


class Commands(LazyCommandGroup):
    """The commands in the order in which help lists them."""

    table: ClassVar = {
        "router": LazyCommand(
            "cli.programs:router", "Run a router until SIGTERM, in `router.processes` processes on one port."
        ),
        "prefill-worker": LazyCommand("cli.programs:prefill_worker", "Run a prefill worker until SIGTERM."),
        "decode-worker": LazyCommand("cli.programs:decode_worker", "Run a decode worker until SIGTERM."),
        "gateway": LazyCommand("cli.programs:gateway", "Run an OpenAI-compatible HTTP gateway until SIGTERM."),
        "up": LazyCommand("cli.clusters:up", "Start a cluster on this machine and leave it running."),
        "down": LazyCommand("cli.clusters:down", "Stop the cluster that `up` left running."),
        "status": LazyCommand("cli.clusters:status", "Show workers, load and counters of a running cluster."),
        "top": LazyCommand("cli.top:top", "Watch pools, promises and the queue of a running cluster."),
        "generate": LazyCommand(
            "cli.generate:generate",
            "Generate text. It goes to standard output, verdict and achieved times go to standard error.",
        ),
        "explain": LazyCommand(
            "cli.explain.command:explain",
            "Say what was promised to one request, where its time went, and who was in the steps that made it late.",
        ),
        "demo": LazyCommand(
            "cli.demo.command:demo",
            "Show in four acts what promises are: made and kept, switched off, refused, and kept when a worker dies.",
        ),
        "health": LazyCommand("cli.health:health", "Exit with 0 if the server at ADDRESS is serving, else with 1."),
        "plan": LazyCommand(
            "cli.sizing:plan",
            "Simulate the smallest cluster that keeps a contract for this traffic, and the curve that shows why.",
        ),
        "replay": LazyCommand(
            "cli.replay:replay",
            "Replay a recording of admission and show the first decision that differs from the recorded one.",
        ),
        "keys": LazyCommand("cli.keys:app", "Make, list and revoke API keys."),
        "certs": LazyCommand(
            "cli.certs:app", "Make and renew certificates for encryption between the processes of a cluster."
        ),
        "redis-acl": LazyCommand(
            "cli.redis_acl:redis_acl",
            "Print the ACL of a Redis for this cluster: one user a role, with no more than it needs.",
        ),
        "config": LazyCommand(
            "cli.describe:config", "Print every option with its default and its documentation, as a TOML file."
        ),
        "bench": LazyCommand("cli.bench:bench", "Measure; every figure says what it ran on."),
    }


app = typer.Typer(
    name="slos-serve",
    cls=Commands,
    help="An LLM serving cluster that promises latency and keeps the promise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands(version: Version = False) -> None:
    """Make typer see a group, whose commands it does not know."""


def main() -> None:
    """Run a command. A file or directory that cannot be used ends it with one line that names it."""
    prepare_streams()
    reach_directly(os.environ)
    try:
        app()
    except OSError as error:
        if error.filename is None:
            raise
        typer.echo(f"{os.fsdecode(error.filename)}: {error.strerror}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
