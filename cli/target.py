"""The router that a client command talks to, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.local.cluster import read_state
from services.config.load import ConfigurationError, load_settings
from services.config.tls import TlsError, client_tls
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
    running = read_state(settings.launcher.run_dir.resolve())
    return running.router_address if running is not None else f"{settings.router.host}:{settings.router.port}"
