"""Who is at the other end of a call, by its certificate, and the refusal of roles that have no business there."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import lru_cache
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status

from services.identity.peer import PeerIdentity, PeerIdentityError, PeerRole
from services.rpc.errors import PermissionDeniedError, RequestError, UnauthenticatedError, abort, to_status

_log = logging.getLogger(__name__)

ANY_ROLE = frozenset(PeerRole)
Roles = Mapping[str, frozenset[PeerRole]]
"""Roles that may call, by the full name of a method (`/package.Service/Method`) or service (`/package.Service/`)."""


def peer_of(context: Any) -> PeerIdentity | None:
    """Return the identity in the caller's certificate; None: the connection is not encrypted.

    Raises:
        PeerIdentityError: the certificate states no identity, or there is none.
    """
    properties = context.auth_context()
    if tuple(properties.get("transport_security_type", ())) != (b"ssl",):
        return None
    return _identity(tuple(properties.get("peer_uri", ())))


@lru_cache(maxsize=256)
def _identity(uris: tuple[bytes, ...]) -> PeerIdentity:
    return PeerIdentity.from_uris(uri.decode("utf-8", "replace") for uri in uris)


class PeerGuard(grpc.aio.ServerInterceptor):
    """Ends calls of processes whose certificate has another cluster or a role that may not make them.

    What the table does not name is an operator's.
    """

    def __init__(self, cluster: str, roles: Roles) -> None:
        self._cluster = cluster
        self._roles = roles
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        known = self._handlers.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        guarded = self._handlers[method] = _guarded(handler, method, lambda context: self._refusal(method, context))
        return guarded

    def _refusal(self, method: str, context: Any) -> RequestError | None:
        """Return why the caller may not call a method; None if it may."""
        service = method[: method.rfind("/") + 1]
        allowed = self._roles.get(method) or self._roles.get(service) or frozenset({PeerRole.OPERATOR})
        refusal: RequestError
        try:
            peer = peer_of(context)
            if peer is not None and peer.cluster == self._cluster and peer.role in allowed:
                return None
            wanted = " or ".join(sorted(allowed))
            said = f"{method} is for {wanted} of cluster {self._cluster}; the certificate is that of {peer}"
            refusal = PermissionDeniedError(said)
        except PeerIdentityError as error:
            refusal = UnauthenticatedError(f"the certificate does not say who calls: {error}")
        _log.warning("refused a call from %s: %s", context.peer(), refusal.detail)
        return refusal


def _guarded(
    handler: Any, method: str, refusal: Callable[[Any], RequestError | None]
) -> grpc.RpcMethodHandler[Any, Any]:
    serve = next(
        function
        for function in (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        if function is not None
    )
    wrap = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]

    async def asynchronous(request: Any, context: Any) -> Any:
        error = refusal(context)
        if error is not None:
            await abort(context, error, refused=method)
        return await serve(request, context)

    async def generating(request: Any, context: Any) -> None:
        error = refusal(context)
        if error is not None:
            await abort(context, error, refused=method)
        async with aclosing(serve(request, context)) as answers:
            async for answer in answers:
                await context.write(answer)

    def threaded(request: Any, context: Any) -> Any:
        error = refusal(context)
        if error is not None:
            status = rpc_status.to_status(to_status(error))
            context.abort(status.code, status.details)
        return serve(request, context)

    if inspect.isasyncgenfunction(serve):
        chosen: Any = generating
    else:
        chosen = asynchronous if inspect.iscoroutinefunction(serve) else threaded
    return wrap(chosen, handler.request_deserializer, handler.response_serializer)
