"""The command `redis-acl`: the users of a cluster in Redis, and what each of them may do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.redis_users import acl_lines
from services.config.load import ConfigurationError, load_settings
from services.state.acl import AclError
from services.terminal.console import make_console

errors = make_console(stderr=True)


def redis_acl(
    passwords: Annotated[
        Path,
        typer.Argument(
            help="Directory of the passwords: ROLE.password for each role. Those that are missing are made, readable "
            "by you alone."
        ),
    ],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML file; see `slos-serve config`.")] = None,
) -> None:
    """Print the ACL of a Redis for this cluster: one user a role, with no more than it needs.

    The lines go into the file that `aclfile` of redis.conf names, or into redis.conf itself; they have digests of the
    passwords. Everybody without name and password is kept out.
    """
    try:
        lines = acl_lines(load_settings(config).redis.prefix, passwords)
    except OSError as error:
        errors.print(f"{passwords}: {error.strerror or error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except (AclError, ConfigurationError) as error:
        errors.print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    for line in lines:
        typer.echo(line)
