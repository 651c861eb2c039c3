"""The guard of a gRPC server: every call needs a right, which the caller's credential must carry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import grpc
import grpc.aio

from services.identity.authenticator import AUTHORIZATION
from services.identity.principal import Principal, Right
from services.identity.refusal import Cause, CredentialError
from services.rpc.caller import act_for
from services.rpc.errors import PermissionDeniedError, RequestError, UnauthenticatedError, abort

OPEN: frozenset[Right] | None = None
"""What a method needs that everybody may call, also without a credential."""

Table = Mapping[str, frozenset[Right] | None]
"""Full names of methods, such as `/package.Service/Method`, with the rights of which a caller needs one."""


class Authenticates(Protocol):
    """Something that finds out who calls, as `services.identity.authenticator.Authenticator` does."""

    async def authenticate(self, authorization: str | None) -> Principal:
        """Return whoever calls with the value of an `authorization` header; None: without one.

        Raises:
            CredentialError: the credential is not valid.
        """


class Guard(grpc.aio.ServerInterceptor):
    """Lets a call through if its caller may make it, and says in `services.rpc.caller` who that is.

    A method that the table does not name is denied to everybody. A refused call ends before its message is read.
    """

    def __init__(self, authenticator: Authenticates, table: Table) -> None:
        self._authenticator = authenticator
        self._table = table

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        needed = self._table.get(method, frozenset())
        if needed is not None:
            authorization = _authorization(handler_call_details)
            try:
                principal = await self._authenticator.authenticate(authorization)
            except CredentialError as error:
                return _refusal(_unauthenticated(error), method, cause=f"credential {error.cause.value}")

            async def check() -> None:
                try:
                    _require(needed, await self._authenticator.authenticate(authorization))
                except CredentialError as error:
                    raise _unauthenticated(error) from None

            # The handler runs in the task that this runs in.
            act_for(principal, check)
            try:
                _require(needed, principal)
            except PermissionDeniedError as denied:
                return _refusal(denied, method)
        return await continuation(handler_call_details)


def _unauthenticated(error: CredentialError) -> UnauthenticatedError:
    """Return what the caller is told: of the causes only that of one who may not know that credentials are needed."""
    missing = error.cause is Cause.MISSING
    return UnauthenticatedError(
        "a credential is needed: authorization: Bearer ..." if missing else "the credential is not valid"
    )


def _require(needed: frozenset[Right], principal: Principal) -> None:
    """Raise a `PermissionDeniedError` if a caller has none of these rights."""
    if not any(principal.may(right) for right in needed):
        raise PermissionDeniedError("the credential does not carry the right to do this")


def _authorization(details: grpc.HandlerCallDetails) -> str | None:
    """Return the credential of a call. Of several none counts: a proxy in front may have looked at another one."""
    found = [value for name, value in details.invocation_metadata or () if name == AUTHORIZATION]
    if len(found) > 1:
        return "several"
    return found[0] if found and isinstance(found[0], str) else None


def _refusal(error: RequestError, method: str, cause: str = "") -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler that ends a call of any kind. It takes a stream, of which no message is read unasked."""

    async def refuse(_requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await abort(context, error, refused=method, cause=cause)

    return grpc.stream_stream_rpc_method_handler(refuse)
