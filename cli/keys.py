"""The command `keys`: API keys are made, listed and revoked."""

from __future__ import annotations

import datetime as dt
import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from cli.clusters import ConfigOption, fail
from cli.key_places import find_place
from deploy.local.errors import RunDirectoryError
from services import audit
from services.config.load import ConfigurationError, load_settings
from services.config.logging import MEBIBYTE
from services.config.settings import LogSettings
from services.faults import first_fault
from services.identity.api_key import WRITTEN, ApiKey, make_key
from services.identity.key_file import KeyFileError
from services.identity.principal import Role
from services.state.acl import AclError
from services.state.api_keys import ApiKeyError
from services.state.connection import StateUnavailableError, StateUrlError
from services.terminal.console import make_console

DEFAULT_DAYS = 365
"""Days for which a key is valid unless told otherwise, so that a forgotten one ends."""

FileOption = Annotated[Path | None, typer.Option(help="File of keys. Default: `auth.keys_file`.")]
RedisOption = Annotated[bool, typer.Option("--redis", help="Keep the keys in Redis, whatever the configuration says.")]

console = make_console()
errors = make_console(stderr=True)

app = typer.Typer(
    name="keys",
    help="Make, list and revoke API keys.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def add(
    tenant: Annotated[str, typer.Argument(help="Tenant to which everything belongs that is done with the key.")],
    role: Annotated[
        list[Role] | None,
        typer.Option(
            help="client: send requests; operator: see the cluster, cancel all requests; admin: both. May be repeated."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name by which people recognise the key.")] = "",
    days: Annotated[int, typer.Option(min=0, max=36500, help="Days for which it is valid; 0: for ever.")] = (
        DEFAULT_DAYS
    ),
    file: FileOption = None,
    redis: RedisOption = False,
    config: ConfigOption = None,
) -> None:
    """Make a key and print it, this once: only a hash of it is kept."""
    with _failures():
        settings = load_settings(config)
        place = find_place(settings, file, redis=redis)
        expires = None if days == 0 else _now() + dt.timedelta(days=days)
        try:
            written, key = make_key(tenant, frozenset(role or [Role.CLIENT]), name, expires)
        except ValidationError as error:
            fail(first_fault(error))
        place.put(key)
        _audit(settings.log, key.id, f"made for tenant {tenant}")
    typer.echo(written)
    errors.print(f"key {key.id} of {tenant}, {_until(key)}", highlight=False, markup=False, soft_wrap=True)


@app.command("list")
def list_keys(file: FileOption = None, redis: RedisOption = False, config: ConfigOption = None) -> None:
    """List all keys, without their secrets, which nobody has but their owners."""
    with _failures():
        keys = find_place(load_settings(config), file, redis=redis).all()
    table = Table("id", "tenant", "roles", "name", "valid", box=None, pad_edge=False)
    for key in sorted(keys.values(), key=lambda key: (key.tenant, key.name, key.id)):
        table.add_row(key.id, escape(key.tenant), " ".join(sorted(key.roles)), escape(key.name), _until(key))
    console.print(table)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Id of the key, as `list` shows it, or the key itself.")],
    file: FileOption = None,
    redis: RedisOption = False,
    config: ConfigOption = None,
) -> None:
    """Revoke a key: routers refuse it a second later. Exits with 1 if there is none with this id."""
    whole = WRITTEN.fullmatch(key)
    key_id = key if whole is None else whole["id"]
    with _failures():
        settings = load_settings(config)
        if not find_place(settings, file, redis=redis).remove(key_id):
            # The text may be a mistyped secret, which must not get onto a screen.
            fail("there is no key with this id")
        _audit(settings.log, key_id, "revoked")
    console.print(f"key {key_id} is revoked", highlight=False, markup=False, soft_wrap=True)


def _audit(options: LogSettings, key_id: str, what: str) -> None:
    """Tell the audit log of a change, if it has a file; the ordinary log of routers tells that keys were read again."""
    if options.audit is None:
        return
    try:
        audit.configure("slos-serve keys", options.audit, options.audit_mebibytes * MEBIBYTE)
    except audit.AuditFileError as error:
        errors.print(f"the audit log does not know: {error}", markup=False, highlight=False, soft_wrap=True)
        return
    detail = f"{what} by user {getpass.getuser()}"
    audit.note(audit.EventKind.KEY, audit.Outcome.DONE, key_id, who=audit.HOST, detail=detail)
    audit.flush()


@contextmanager
def _failures() -> Iterator[None]:
    """End the command with a line if keys cannot be read or changed."""
    try:
        yield
    except (
        *(ConfigurationError, RunDirectoryError, KeyFileError, AclError),
        *(ApiKeyError, StateUnavailableError, StateUrlError),
    ) as error:
        fail(error)


def _until(key: ApiKey) -> str:
    if key.expires is None:
        return "for ever"
    return f"{'until' if _now() < key.expires else 'expired'} {key.expires:%Y-%m-%d %H:%M} UTC"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
