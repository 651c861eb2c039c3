"""The ports of a local cluster: free before anything starts, and served by its own processes afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from deploy.local.errors import ClusterStartError
from deploy.local.processes import RunningProcess
from services.config.exposure import ExposedError, check_exposure
from services.config.settings import Settings
from services.network.address import LOOPBACK, AddressInUseError, BindError, check_address, listening_socket

OPEN_TO_CLIENTS = ("router.", "gateway.")
"""Beginnings of the names of options of servers that clients call."""


def free_port(host: str = LOOPBACK) -> int:
    """Return a port on which nobody listens at this moment.

    Raises:
        BindError: the host is no address of this machine.
    """
    with listening_socket(host, 0, backlog=1) as probe:
        port: int = probe.getsockname()[1]
        return port


def check_ports(settings: Settings) -> None:
    """Check that a cluster could listen wherever it is told to.

    Raises:
        ClusterStartError: it could not; the message names the option.
    """
    for section, host, port in _wanted(settings):
        try:
            if port:
                check_address(host, port)
            else:
                free_port(host)
        except AddressInUseError as error:
            raise ClusterStartError(f"{section}port: {error}") from error
        except BindError as error:
            raise ClusterStartError(f"{section}host: {error}") from error
        try:
            if section in OPEN_TO_CLIENTS:
                check_exposure(settings.auth, f"{section}host", host)
        except ExposedError as error:
            raise ClusterStartError(str(error)) from error


def is_served_by(process: RunningProcess, port: int) -> bool:
    """Return whether a process or one of its children listens on a port, rather than somebody else's process.

    Where the system does not tell, it is believed to.
    """
    live = process.process()
    if live is None:
        return False
    try:
        family = [live, *live.children(recursive=True)]
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for member in family
            for connection in member.net_connections("inet")
        )
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False


def _wanted(settings: Settings) -> Iterator[tuple[str, str, int]]:
    """Yield host and port of every server that has one of its own, each with the beginning of the options' names."""
    launcher, telemetry = settings.launcher, settings.telemetry
    yield "router.", settings.router.host, settings.router.port
    if launcher.gateway:
        yield "gateway.", settings.gateway.host, settings.gateway.port
    if launcher.prefill:
        yield "prefill_worker.", settings.prefill_worker.host, settings.prefill_worker.port
    yield "decode_worker.", settings.decode_worker.host, settings.decode_worker.port
    if telemetry.metrics:
        processes = launcher.prefill + launcher.decode + 1 + launcher.gateway
        for number in range(processes if telemetry.metrics_port else 1):
            yield "telemetry.metrics_", telemetry.metrics_host, telemetry.metrics_port + number
