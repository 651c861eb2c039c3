"""The command `certs`: a development authority and the certificates of a cluster's processes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from deploy.certificates import Authority, AuthorityError, Issued, machine_hosts
from services.identity.peer import PeerIdentity, PeerIdentityError, PeerRole
from services.terminal.console import make_console

DEFAULT_DAYS = 30
"""Days for which a certificate is valid unless told otherwise: short, because nothing but its end revokes one."""
DEFAULT_AUTHORITY_DAYS = 365

DirectoryArgument = Annotated[Path, typer.Argument(help="Directory of the authority and its certificates.")]
MembersArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ROLE[/ID]]...",
        help="Whom to make certificates for: router, worker, gateway, redis, operator, client; with an id, as in "
        "worker/prefill-0, it is good for that process only. Default: one of each role.",
    ),
]
HostOption = Annotated[
    list[str] | None,
    typer.Option(help="Name or address by which clients reach the processes. Default: this machine's. Repeatable."),
]
DaysOption = Annotated[int, typer.Option(min=1, help="Days for which a certificate is valid.")]

console = make_console()
errors = make_console(stderr=True)

app = typer.Typer(
    name="certs",
    help="Make and renew certificates for encryption between the processes of a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def create(
    directory: DirectoryArgument,
    members: MembersArgument = None,
    cluster: Annotated[str, typer.Option(help="Name of the cluster, which every certificate carries.")] = "local",
    host: HostOption = None,
    days: DaysOption = DEFAULT_DAYS,
    authority_days: Annotated[int, typer.Option(min=1, help="Days for which the authority is valid.")] = (
        DEFAULT_AUTHORITY_DAYS
    ),
) -> None:
    """Make an authority, and certificates that it signs."""
    with _failures():
        identities = _identities(cluster, members or list(PeerRole))
        hosts, now = tuple(host or machine_hosts()), _now()
        authority = Authority.create(directory, cluster, dt.timedelta(days=authority_days), now)
        _say(f"{authority.file}  authority of cluster {cluster}", authority.certificate.not_valid_after_utc)
        _show(authority.issue(identity, hosts, dt.timedelta(days=days), now) for identity in identities)


@app.command()
def add(
    directory: DirectoryArgument,
    members: MembersArgument = None,
    host: HostOption = None,
    days: DaysOption = DEFAULT_DAYS,
) -> None:
    """Make more certificates with the authority of a directory."""
    with _failures():
        authority = Authority.read(directory)
        identities = _identities(authority.cluster, members or list(PeerRole))
        hosts, now = tuple(host or machine_hosts()), _now()
        _show(authority.issue(identity, hosts, dt.timedelta(days=days), now) for identity in identities)


@app.command()
def renew(
    directory: DirectoryArgument,
    days: Annotated[int | None, typer.Option(min=1, help="Days of validity. Default: as the old ones had.")] = None,
) -> None:
    """Sign every certificate of a directory anew; running processes take the new ones for the next connection."""
    with _failures():
        _show(Authority.read(directory).renew(None if days is None else dt.timedelta(days=days), _now()))


@app.command()
def show(directory: DirectoryArgument) -> None:
    """List the certificates of a directory and when they expire."""
    with _failures():
        authority = Authority.read(directory)
        _say(f"{authority.file}  authority of cluster {authority.cluster}", authority.certificate.not_valid_after_utc)
        _show(authority.issued())


def _identities(cluster: str, members: Iterable[str]) -> list[PeerIdentity]:
    found = []
    for member in members:
        role, slash, name = member.partition("/")
        if role not in set(PeerRole) or bool(slash) != bool(name):
            raise PeerIdentityError(f"{member!r} is not ROLE or ROLE/ID, with a role of {', '.join(PeerRole)}")
        found.append(PeerIdentity(cluster, PeerRole(role), name))
    return found


def _show(issued: Iterable[Issued]) -> None:
    for one in issued:
        _say(f"{one.path}  {one.certificate.identity}", one.certificate.not_after)


def _say(what: str, until: dt.datetime) -> None:
    left_days = (until - _now()).total_seconds() / 86400
    state = f"until {until:%Y-%m-%d %H:%M} UTC, {left_days:.1f} days" if left_days > 0 else "EXPIRED"
    console.print(f"{what}, {state}", markup=False, highlight=False, soft_wrap=True)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (AuthorityError, PeerIdentityError) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    errors.print(str(error), style="red", markup=False, soft_wrap=True)
    raise typer.Exit(1)
