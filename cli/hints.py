"""Commands that are printed for a person to type next; each reaches the very cluster that it is printed for."""

from __future__ import annotations

import shlex
from pathlib import Path

from deploy.local.run_directory import is_default

QUESTION = "What is the capital of France?"


def try_command(run_dir: Path, router_address: str, config: Path | None) -> str:
    """Return the command that sends a first prompt to a cluster.

    Args:
        config: the file that says how its router is called; None if the router is unencrypted.
    """
    words = ["slos-serve", "generate", QUESTION]
    if config is not None:
        words += ["--config", str(config.resolve())]
    if not is_default(run_dir):
        words += ["--address", router_address]
    return shlex.join(words)
