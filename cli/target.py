"""The router that a client command talks to, and how."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from deploy.local.errors import RunDirectoryError
from deploy.local.run_directory import read_state, run_directory
from services.config.load import ConfigurationError, load_settings
from services.config.tls import TlsError, client_tls
from services.network.address import local_address
from services.network.proxies import reach_directly
from slos_serve import Tls

AddressOption = Annotated[
    str | None, typer.Option("--address", "-a", help="host:port of the router. Default: the cluster `up` started.")
]


def router_tls(config: Path | None) -> Tls | None:
    """Read how routers of the configured cluster are called; None: unencrypted.

    Raises:
        ConfigurationError
    """
    try:
        return client_tls(load_settings(config).router)
    except TlsError as error:
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
