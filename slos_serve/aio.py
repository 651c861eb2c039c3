"""The client for programs that use asyncio."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
import grpc.aio

from slos_serve.cluster import ClusterState, cluster_state_from_wire
from slos_serve.connection import Keepalive, Tls, channel_options
from slos_serve.contract import Contract, session_contract
from slos_serve.credential import Bearer, Credential
from slos_serve.errors import SlosServeError, UnknownRequestError, error_of
from slos_serve.events import Admission, Completion, Event, Finished, Quote, event_from_wire, quote_from_wire
from slos_serve.gathering import Gathering
from slos_serve.request import CallOptions, Prompt, build_request, call_metadata, request_options
from slos_serve.retry import Attempts, RetryPolicy, RouterBook
from slos_serve.v1 import inference_pb2, inference_pb2_grpc

Answer = TypeVar("Answer")
Call = grpc.aio.UnaryStreamCall[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]


EARLIER_CERTIFICATES = 4
"""Certificates that were replaced whose connections are kept for the calls on them. Certificates last days and calls
minutes, so that a call does not outlive so many."""


class AsyncClient:
    """Talks to a cluster through one or more of its routers. Close it, or use it as `async with`.

    Args:
        addresses: host:port of every router. Calls go to them in turn, past those that cannot be reached.
        tls: None: unencrypted.
        api_key: API key or JWT that every call carries, or a function that returns the one to send now, and is called
            for each attempt. None: calls carry no credential.
        insecure_credentials: send credentials unencrypted to routers on other machines too.
        application, tenant: those of every request that does not name its own.

    Raises:
        CredentialError: `api_key` cannot be sent, or would go unencrypted to another machine.
    """

    def __init__(
        self,
        *addresses: str,
        tls: Tls | None = None,
        api_key: Credential | None = None,
        insecure_credentials: bool = False,
        keepalive: Keepalive | None = None,
        retry: RetryPolicy | None = None,
        application: str = "",
        tenant: str = "",
    ) -> None:
        self._routers = RouterBook(addresses)
        self._tls = tls
        self._bearer = Bearer(api_key, self.addresses, tls, insecure=insecure_credentials)
        self._keepalive = keepalive or Keepalive()
        self._retry = retry or RetryPolicy()
        self._application = application
        self._tenant = tenant
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._earlier: list[grpc.aio.Channel] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return the addresses of all routers as host:port."""
        return self._routers.addresses

    def generate(self, prompt: Prompt, **options: Unpack[CallOptions]) -> AsyncStream:
        """Send a request. Nothing happens before the first event is asked for; then errors are raised from there.

        Leaving the stream early, by `break`, an exception or a cancelled task, ends the request at the router.
        """
        return self._generate("", prompt, options)

    async def quote(self, prompt: Prompt, **options: Unpack[CallOptions]) -> Quote:
        """Ask what would become of this request now, without running it.

        Raises:
            SlosServeError
        """
        request = inference_pb2.QuoteRequest(request=build_request(prompt, **self._defaults(options)))
        metadata = call_metadata(options)

        async def ask(stub: inference_pb2_grpc.InferenceAsyncStub, left_s: float | None) -> inference_pb2.QuoteResponse:
            return await stub.Quote(request, timeout=left_s, metadata=self._bearer.signed(metadata))

        return quote_from_wire(await self._ask(options.get("timeout_s"), ask))

    async def cancel(self, request_id: str, *, timeout_s: float | None = 5.0) -> None:
        """End a request, which may be another client's; its stream finishes with `FinishReason.ABORT`.

        Where routers check credentials, clients end requests of their own tenant only, and operators those of every
        tenant; where they check none, everybody ends every request.

        Raises:
            UnknownRequestError: no router runs it.
            SlosServeError
        """
        request = inference_pb2.CancelRequest(request_id=request_id)
        errors: list[SlosServeError] = []
        for address in self.addresses:
            try:
                await self._stub(address).Cancel(request, timeout=timeout_s, metadata=self._bearer.signed(()))
            except grpc.aio.AioRpcError as error:
                errors.append(_typed(error))
            else:
                return
        # Only if every router said so is it unknown.
        raise next((error for error in errors if not isinstance(error, UnknownRequestError)), errors[0])

    async def cluster_state(
        self, *, timeout_s: float | None = 5.0, metadata: Mapping[str, str] | None = None
    ) -> ClusterState:
        """Return the state of the cluster as one of its routers sees it, or the part of it that this caller may see.

        Args:
            metadata: further gRPC metadata of the call.

        Raises:
            SlosServeError
        """
        request = inference_pb2.GetClusterStateRequest()
        more = call_metadata({"metadata": metadata or {}})

        async def ask(
            stub: inference_pb2_grpc.InferenceAsyncStub, left_s: float | None
        ) -> inference_pb2.GetClusterStateResponse:
            return await stub.GetClusterState(request, timeout=left_s, metadata=self._bearer.signed(more))

        return cluster_state_from_wire((await self._ask(timeout_s, ask)).state)

    def session(self, contract: Contract, *, session_id: str = "") -> AsyncSession:
        """Return a session for the requests of one task, a tool loop, which share a contract and its deadline."""
        return AsyncSession(self, contract, session_id or f"session-{secrets.token_hex(16)}")

    async def replace_tls(self, tls: Tls) -> None:
        """Show another certificate, and trust others, from the next call on. Calls under way go on where they are.

        Their connections are kept until as many certificates as `EARLIER_CERTIFICATES` have come after theirs.
        """
        if self._tls is None:
            raise ValueError("this client was made without TLS, and so are its connections")
        self._tls = tls
        channels, self._channels = self._channels, {}
        self._earlier += channels.values()
        too_many = len(self._earlier) - EARLIER_CERTIFICATES * len(self.addresses)
        oldest, self._earlier = self._earlier[: max(0, too_many)], self._earlier[max(0, too_many) :]
        for channel in oldest:
            await channel.close()

    async def close(self) -> None:
        """End all calls of this client."""
        channels = [*self._channels.values(), *self._earlier]
        self._channels, self._earlier = {}, []
        for channel in channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _generate(self, pin: str, prompt: Prompt, options: CallOptions) -> AsyncStream:
        request = build_request(prompt, **self._defaults(options))
        metadata = call_metadata(options)

        def start(address: str, left_s: float | None) -> Call:
            return self._stub(address).Generate(request, timeout=left_s, metadata=self._bearer.signed(metadata))

        return AsyncStream(start, Attempts(self._retry, self._routers, options.get("timeout_s"), pin))

    def _defaults(self, options: CallOptions) -> CallOptions:
        return request_options(options, self._application, self._tenant)

    async def _ask(
        self,
        timeout_s: float | None,
        ask: Callable[[inference_pb2_grpc.InferenceAsyncStub, float | None], Awaitable[Answer]],
    ) -> Answer:
        attempts = Attempts(self._retry, self._routers, timeout_s)
        while True:
            try:
                answer = await ask(self._stub(attempts.router), attempts.left_s)
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(attempts.failed(_typed(error)))
            else:
                attempts.succeeded()
                return answer

    def _stub(self, address: str) -> inference_pb2_grpc.InferenceAsyncStub:
        channel = self._channels.get(address)
        if channel is None:
            tls = self._tls
            options = channel_options(address, self._keepalive, tls)
            if tls is None:
                channel = grpc.aio.insecure_channel(address, options=options)
            else:
                credentials = grpc.ssl_channel_credentials(
                    tls.root_certificates, tls.private_key, tls.certificate_chain
                )
                channel = grpc.aio.secure_channel(address, credentials, options=options)
            self._channels[address] = channel
        return inference_pb2_grpc.InferenceStub(channel)


class AsyncStream(AsyncIterator[Event]):
    """Yields the events of one request, once. `async with` makes sure that the request ends where the block does."""

    def __init__(self, start: Callable[[str, float | None], Call], attempts: Attempts) -> None:
        self._start = start
        self._attempts = attempts
        self._call: Call | None = None
        self._over = False
        self.admission: Admission | None = None
        """Answer to the contract; None before the first event."""
        self.finished: Finished | None = None
        """Outcome of the request; None before the last event."""

    async def __anext__(self) -> Event:
        """Return the next event.

        Raises:
            SlosServeError
        """
        while not self._over:
            message = await self._next_message()
            if message is None:
                break
            event = event_from_wire(message)
            match event:
                case Admission():
                    self.admission = event
                case Finished():
                    self.finished = event
            if event is not None:
                return event
        raise StopAsyncIteration

    async def completion(self) -> Completion:
        """Read the stream to its end and return everything at once.

        Raises:
            SlosServeError
        """
        gathering = Gathering()
        async with self:
            async for event in self:
                gathering.take(event)
        return gathering.completion()

    def cancel(self) -> None:
        """End the request at the router; the iteration ends."""
        self._over = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # `break` out of a loop over an unnamed stream ends here, at once.
        call: Call | None = getattr(self, "_call", None)
        if call is not None and not call.done():
            call.cancel()

    async def _next_message(self) -> inference_pb2.GenerateResponse | None:
        while True:
            first = self._call is None
            call = self._call or self._start(self._attempts.router, self._attempts.left_s)
            self._call = call
            try:
                message = await call.read()
            except grpc.aio.AioRpcError as error:
                self._call = None
                if not first:
                    self._over = True
                    raise _typed(error) from error
                await asyncio.sleep(self._attempts.failed(_typed(error)))
                continue
            except asyncio.CancelledError:
                call.cancel()
                if self._over:
                    return None
                task = asyncio.current_task()
                if task is not None and not task.cancelling():
                    # grpc says so as well when it is the other side that cancelled.
                    self._over = True
                    raise error_of(grpc.StatusCode.CANCELLED, "the call was cancelled on its way", ()) from None
                raise
            if isinstance(message, inference_pb2.GenerateResponse):
                if first:
                    self._attempts.succeeded()
                return message
            self._over = True
            return None


class AsyncSession:
    """Sends the requests of one task, all to the same router, which knows when the task began."""

    def __init__(self, client: AsyncClient, contract: Contract, session_id: str) -> None:
        self._client = client
        self._contract = contract
        self.session_id = session_id

    def generate(self, prompt: Prompt, *, final: bool = False, **options: Unpack[CallOptions]) -> AsyncStream:
        """Send a request as `AsyncClient.generate` does, under the session's contract or the one given here.

        Args:
            final: whether it is the last request of the task, for which the contract's `final_decode` applies.
        """
        contract = session_contract(options.get("contract") or self._contract, self.session_id, final=final)
        return self._client._generate(self.session_id, prompt, {**options, "contract": contract})  # noqa: SLF001


def _typed(error: grpc.aio.AioRpcError) -> SlosServeError:
    return error_of(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
