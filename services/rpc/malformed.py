"""Rejection of requests whose bytes are not a message of the called method.

Without it gRPC answers UNKNOWN and logs a traceback; here the status is INVALID_ARGUMENT and says what is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from services.rpc.errors import InvalidRequestError, abort


@dataclass(frozen=True, slots=True)
class _Malformed:
    detail: str


class MalformedRequests(grpc.aio.ServerInterceptor):
    """Rejects malformed requests.

    A method that takes one request is not called at all. A method that takes a stream of requests gets the
    `InvalidRequestError` from the stream, where the malformed one would have come; if it lets it pass, the call ends
    with its status.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        known = self._handlers.get(handler_call_details.method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        guarded = _guarded_stream(handler) if handler.request_streaming else _guarded(handler)
        self._handlers[handler_call_details.method] = guarded
        return guarded


def _reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError as error:
            return _Malformed(str(error))

    return read


def _guarded(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    read, serialize = _reader(handler.request_deserializer), handler.response_serializer
    serve = handler.unary_stream if handler.response_streaming else handler.unary_unary
    if inspect.isasyncgenfunction(serve):
        return grpc.unary_stream_rpc_method_handler(_stream(serve), read, serialize)
    if not inspect.iscoroutinefunction(serve):
        # A function of gRPC's own, which runs in a thread.
        return cast("grpc.RpcMethodHandler[Any, Any]", handler)
    if handler.response_streaming:
        # A coroutine that writes its answers to the context.
        return grpc.unary_stream_rpc_method_handler(_unary(serve), read, serialize)
    return grpc.unary_unary_rpc_method_handler(_unary(serve), read, serialize)


def _guarded_stream(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """Guard a method that takes a stream of requests and answers with a stream; others there are none of."""
    serve = handler.stream_stream
    if serve is None:
        return cast("grpc.RpcMethodHandler[Any, Any]", handler)

    async def guarded(requests: AsyncIterator[Any], context: Any) -> None:
        answers = serve(_well_formed(requests), context)
        try:
            if not inspect.isasyncgen(answers):
                await answers
                return
            async with aclosing(answers):
                async for answer in answers:
                    await context.write(answer)
        except InvalidRequestError as error:
            await abort(context, error)

    read = _reader(handler.request_deserializer)
    return grpc.stream_stream_rpc_method_handler(guarded, read, handler.response_serializer)


async def _well_formed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Malformed):
            raise _invalid(request)
        yield request


def _stream(serve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def guarded(request: Any, context: Any) -> None:
        await _check(request, context)
        stream = serve(request, context)
        del request
        try:
            async with aclosing(stream) as answers:
                async for answer in answers:
                    # Written and not yielded, because each message would pass through one more generator.
                    await context.write(answer)
        except grpc.aio.AbortError as aborted:
            raise _without_frames(aborted) from None

    return guarded


def _unary(serve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def guarded(request: Any, context: Any) -> Any:
        await _check(request, context)
        answer = serve(request, context)
        del request
        try:
            return await answer
        except grpc.aio.AbortError as aborted:
            raise _without_frames(aborted) from None

    return guarded


def _without_frames(aborted: grpc.aio.AbortError) -> grpc.aio.AbortError:
    """Return the error that ends a call, without the frames that it came through.

    gRPC keeps the error with the call, and the frames of the error hold the call: with them the request, of up to
    megabytes, would stay in memory until the garbage collector looks for cycles, which is seldom.
    """
    aborted.__context__ = None
    return aborted.with_traceback(None)


async def _check(request: Any, context: Any) -> None:
    if isinstance(request, _Malformed):
        await abort(context, _invalid(request))


def _invalid(request: _Malformed) -> InvalidRequestError:
    return InvalidRequestError(f"the bytes are no such message: {request.detail}", field="request")
