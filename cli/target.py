"""The router that a client command talks to, and how."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from deploy.local.certificates import LocalCertificates
from deploy.local.errors import RunDirectoryError
from deploy.local.run_directory import read_state, run_directory
from services.config.load import ConfigurationError, load_settings
from services.config.own_credential import own_credential
from services.config.tls import TlsError, client_tls, cluster_tls
from services.identity.peer import PeerRole
from services.network.address import local_address
from services.network.proxies import reach_directly
from services.rpc.tls import ClusterTls
from slos_serve import Client, CredentialError, RetryPolicy, Tls

AddressOption = Annotated[
    str | None, typer.Option("--address", "-a", help="host:port of the router. Default: the cluster `up` started.")
]


@dataclass(frozen=True, slots=True)
class Target:
    """A router that a command calls, and the credential that it sends."""

    address: str
    tls: Tls | None = None
    """How the router is called; None: unencrypted."""
    credential: str | None = field(default=None, repr=False)
    """API key or token; None: calls carry none."""
    insecure_credentials: bool = False
    """Whether the credential may go unencrypted to another machine."""

    def client(self, retry: RetryPolicy | None = None) -> Client:
        """Return a client of the router.

        Raises:
            ConfigurationError: the credential cannot be sent.
        """
        try:
            return Client(
                self.address,
                tls=self.tls,
                api_key=self.credential,
                insecure_credentials=self.insecure_credentials,
                retry=retry,
            )
        except CredentialError as error:
            raise ConfigurationError(_with_option(error)) from error


def find_target(
    address: str | None, config: Path | None, api_key_file: Path | None = None, *, insecure_credentials: bool = False
) -> Target:
    """Return how to call the router at the given address, or that of the local cluster, or the configured one.

    Raises:
        ConfigurationError: the configuration, a certificate or the credential cannot be used.
    """
    found = Target(
        router_address(address, config), router_tls(config, address), own_credential(api_key_file), insecure_credentials
    )
    # A credential that cannot be sent there is a fault of the command line, and said before anything is asked.
    found.client().close()
    return found


def router_tls(config: Path | None, address: str | None = None) -> Tls | None:
    """Read how routers of the configured cluster are called, or the one that `up` started; None: unencrypted.

    Args:
        address: host:port of a router; None: that of the local cluster or the configured one.

    Raises:
        ConfigurationError
    """
    try:
        settings = load_settings(config)
        running = read_state(run_directory(settings.launcher))
        if running is not None and running.certificates and address in {None, running.router_address}:
            own: ClusterTls | None = LocalCertificates(Path(running.certificates)).operator()
        else:
            own = cluster_tls(settings.tls, PeerRole.OPERATOR, PeerRole.CLIENT)
        return client_tls(settings.router, cluster=own)
    except (TlsError, RunDirectoryError) as error:
        raise ConfigurationError(str(error)) from error


def router_address(address: str | None, config: Path | None) -> str:
    """Return the given address, or that of the local cluster, or the configured one.

    Raises:
        ConfigurationError
    """
    if address:
        return address
    settings = load_settings(config)
    try:
        running = read_state(run_directory(settings.launcher))
    except RunDirectoryError as error:
        raise ConfigurationError(str(error)) from error
    target = running.router_address if running else local_address(settings.router.host, settings.router.port)
    # It is one of the cluster's own, wherever that is.
    reach_directly(os.environ, [target.rpartition(":")[0]])
    return target


def _with_option(error: CredentialError) -> str:
    return str(error).replace("insecure_credentials=True", "--insecure-credentials")
