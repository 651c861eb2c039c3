"""A gRPC server with health checking and, if configured, reflection and channelz."""

from __future__ import annotations

from collections.abc import Iterable

import grpc.aio
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.network.address import BindError, check_address, join_address
from services.rpc.guard import Guard
from services.rpc.health import BoundedHealth
from services.rpc.malformed import MalformedRequests
from services.rpc.options import channelz_options, server_options
from services.rpc.peers import PeerGuard
from services.rpc.tls import ClusterTls, ServerTls

CHANNELZ: str = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name


class RpcServer:
    """A listening gRPC server. Add servicers to `grpc`, then `bind`, then `start`.

    In health checks the service "" is SERVING while the process lives, and the full name of a service is SERVING while
    it takes new work.
    """

    def __init__(
        self,
        service_names: Iterable[str],
        max_message_bytes: int,
        *,
        with_reflection: bool,
        with_channelz: bool = False,
        share_port: bool = False,
        guard: Guard | None = None,
        peers: PeerGuard | None = None,
    ) -> None:
        """
        Args:
            guard: decides who may call what; None: everybody may call everything.
            with_channelz: show connections and calls of this process to every client; counting them costs a little.
            share_port: other processes may listen on the same port; new connections are spread over all of them.
            peers: decides by the certificates of callers who may call what; None: certificates are not looked at.
        """
        options = server_options(max_message_bytes, share_port=share_port)
        # The guards come first: nobody learns what is wrong with a message before it is known who sent it.
        guards = [interceptor for interceptor in (guard, peers) if interceptor is not None]
        interceptors = (*guards, MalformedRequests())
        self.grpc = grpc.aio.server(interceptors=interceptors, options=(*options, *channelz_options(on=with_channelz)))
        self._share_port = share_port
        self._service_names = tuple(service_names)
        self._health = BoundedHealth()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        if with_channelz:
            channelz.add_channelz_servicer(self.grpc)
        if with_reflection:
            names = [*self._service_names, health.SERVICE_NAME, reflection.SERVICE_NAME]
            names += [CHANNELZ] if with_channelz else []
            reflection.enable_server_reflection(names, self.grpc)

    def bind(self, host: str, port: int, tls: ServerTls | ClusterTls | None = None) -> int:
        """Listen on an address from `start` on, and return the port; 0 takes a free one.

        Raises:
            AddressInUseError: another process listens there.
            BindError: the address is not one of this machine, or not allowed.
        """
        if port and not self._share_port:
            check_address(host, port)
        address = join_address(host, port)
        try:
            if tls is not None:
                return self.grpc.add_secure_port(address, tls.credentials())
            return self.grpc.add_insecure_port(address)
        except RuntimeError as error:
            if not self._share_port:
                check_address(host, port)
            raise BindError(address, str(error)) from error

    async def start(self) -> None:
        """Accept calls. Services are NOT_SERVING until `set_serving`."""
        for name in self._service_names:
            await self.set_serving(name, False)
        await self.grpc.start()

    async def set_serving(self, service_name: str, serving: bool) -> None:
        """Set the health of a service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(service_name, status)

    async def stop(self, grace_s: float) -> None:
        """Accept no more calls, and end those that last longer than `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace_s)
