"""Whether the parts of a local cluster are ready: asked of each where it listens, and of nobody else."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import ClusterStartError
from deploy.local.operator_key import WANTED
from deploy.local.ports import is_served_by
from deploy.local.processes import RunningProcess
from deploy.local.run_directory import RunningCluster
from services.config.redis import redis_connection
from services.config.settings import RedisSettings
from services.state.connection import StateUnavailableError, StateUrlError
from slos_serve import Client, PermissionDeniedError, SlosServeError, UnauthenticatedError, WorkerHealth

ANSWER_TIMEOUT_S = 2.0
CONNECT_S = 1.0
"""Seconds after which a port on this machine that does not take a connection is one on which nobody listens."""


def check_redis(settings: RedisSettings) -> None:
    """Check that the configured Redis answers, so that nothing waits for workers that cannot register.

    Raises:
        ClusterStartError: it does not.
    """

    async def ping() -> None:
        connection = redis_connection(settings, logs_changes=False)
        try:
            await connection.ping()
        finally:
            await connection.close()

    try:
        asyncio.run(ping())
    except (StateUnavailableError, StateUrlError) as error:
        raise ClusterStartError(str(error)) from error


@dataclass(slots=True)
class Readiness:
    """Asks a cluster that starts which of its processes serve.

    What answers in the place of one of them is none of them: others may have the same port, and a Redis that several
    clusters share may know workers of others, even one of the same name.

    Args:
        client: a client of the cluster's router.
        gateway_certificate: PEM file of the gateway's certificate, if it serves https.
    """

    client: Client
    cluster: RunningCluster
    gateway_certificate: Path | None
    redis_is_away: bool = False
    """True if the router said at the last look that it does not reach Redis."""

    def look(self) -> set[str]:
        """Return the names of the processes that serve.

        Raises:
            ClusterStartError: the router does not tell its state to this caller.
        """
        own = {process.name: process for process in self.cluster.processes}
        # gRPC waits longer and longer between its own attempts at a port on which nobody listens yet.
        if not _serves(own["router"], self.cluster.router_address):
            return set()
        try:
            state = self.client.cluster_state(timeout_s=ANSWER_TIMEOUT_S)
        except (UnauthenticatedError, PermissionDeniedError) as error:
            raise ClusterStartError(
                f"the router does not say which workers are ready: {error.detail}; {WANTED}"
            ) from error
        except SlosServeError:
            return set()
        if state.partial:
            raise ClusterStartError(f"the router does not say to clients which workers are ready; {WANTED}")
        self.redis_is_away = not state.redis_connected
        ready = {"router"}
        for worker in state.workers:
            process = own.get(worker.worker_id)
            if worker.health is WorkerHealth.READY and process is not None and _serves(process, worker.address):
                ready.add(worker.worker_id)
        gateway = own.get("gateway")
        if gateway is not None and _serves(gateway, self.cluster.gateway_address):
            # A gateway that answers that no worker is there yet is ready, too.
            healthy = _is_healthy(self.cluster.gateway_address, self.gateway_certificate)
            if healthy is not None and healthy in {True, state.ready}:
                ready.add("gateway")
        return ready


def _serves(process: RunningProcess, address: str) -> bool:
    return _is_listening(address) and is_served_by(process, int(address.rpartition(":")[2]))


def _is_listening(address: str) -> bool:
    """Return whether a server takes connections at host:port, which is quicker to tell than whose server it is."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            return True
    except OSError:
        return False


def _is_healthy(address: str, certificate: Path | None) -> bool | None:
    """Return what a gateway's health check says of the cluster; None if the gateway does not answer."""
    host, _, port = address.rpartition(":")
    if certificate is None:
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=5.0)
    else:
        context = ssl.create_default_context(cafile=str(certificate))
        # It was started here: whether it listens is asked, not for which name, nor who signed it.
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=5.0, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
