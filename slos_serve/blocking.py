"""The client for programs that use threads."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self, TypeVar, Unpack, cast

import grpc

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


class Call(Protocol):
    """A streaming call that grpc has started."""

    def __next__(self) -> inference_pb2.GenerateResponse: ...

    def cancel(self) -> bool: ...


class Client:
    """Talks to a cluster through one or more of its routers. Close it, or use it as `with`. Thread-safe.

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
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return the addresses of all routers as host:port."""
        return self._routers.addresses

    def generate(self, prompt: Prompt, **options: Unpack[CallOptions]) -> Stream:
        """Send a request. Nothing happens before the first event is asked for; then errors are raised from there.

        Leaving the stream early, by `break` or an exception, ends the request at the router.
        """
        return self._generate("", prompt, options)

    def quote(self, prompt: Prompt, **options: Unpack[CallOptions]) -> Quote:
        """Ask what would become of this request now, without running it.

        Raises:
            SlosServeError
        """
        request = inference_pb2.QuoteRequest(request=build_request(prompt, **self._defaults(options)))
        metadata = call_metadata(options)
        return quote_from_wire(
            self._ask(
                options.get("timeout_s"),
                lambda stub, left_s: stub.Quote(request, timeout=left_s, metadata=self._bearer.signed(metadata)),
            )
        )

    def cancel(self, request_id: str, *, timeout_s: float | None = 5.0) -> None:
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
                self._stub(address).Cancel(request, timeout=timeout_s, metadata=self._bearer.signed(()))
            except grpc.RpcError as error:
                errors.append(_typed(error))
            else:
                return
        # Only if every router said so is it unknown.
        raise next((error for error in errors if not isinstance(error, UnknownRequestError)), errors[0])

    def cluster_state(
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
        answer = self._ask(
            timeout_s,
            lambda stub, left_s: stub.GetClusterState(request, timeout=left_s, metadata=self._bearer.signed(more)),
        )
        return cluster_state_from_wire(answer.state)

    def session(self, contract: Contract, *, session_id: str = "") -> Session:
        """Return a session for the requests of one task, a tool loop, which share a contract and its deadline."""
        return Session(self, contract, session_id or f"session-{secrets.token_hex(16)}")

    def close(self) -> None:
        """End all calls of this client."""
        with self._lock:
            channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _generate(self, pin: str, prompt: Prompt, options: CallOptions) -> Stream:
        request = build_request(prompt, **self._defaults(options))
        metadata = call_metadata(options)

        def start(address: str, left_s: float | None) -> Call:
            return self._stub(address).Generate(request, timeout=left_s, metadata=self._bearer.signed(metadata))

        return Stream(start, Attempts(self._retry, self._routers, options.get("timeout_s"), pin))

    def _defaults(self, options: CallOptions) -> CallOptions:
        return request_options(options, self._application, self._tenant)

    def _ask(
        self, timeout_s: float | None, ask: Callable[[inference_pb2_grpc.InferenceStub, float | None], Answer]
    ) -> Answer:
        attempts = Attempts(self._retry, self._routers, timeout_s)
        while True:
            try:
                answer = ask(self._stub(attempts.router), attempts.left_s)
            except grpc.RpcError as error:
                time.sleep(attempts.failed(_typed(error)))
            else:
                attempts.succeeded()
                return answer

    def _stub(self, address: str) -> inference_pb2_grpc.InferenceStub:
        with self._lock:
            channel = self._channels.get(address)
            if channel is None:
                channel = self._open(address)
                self._channels[address] = channel
        return inference_pb2_grpc.InferenceStub(channel)

    def _open(self, address: str) -> grpc.Channel:
        tls = self._tls
        options = channel_options(address, self._keepalive, tls)
        if tls is None:
            return grpc.insecure_channel(address, options=options)
        credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
        return grpc.secure_channel(address, credentials, options=options)


class Stream(Iterator[Event]):
    """Yields the events of one request, once. `with` makes sure that the request ends where the block does.

    One thread iterates; any other may `cancel`.
    """

    def __init__(self, start: Callable[[str, float | None], Call], attempts: Attempts) -> None:
        self._start = start
        self._attempts = attempts
        self._call: Call | None = None
        self._over = threading.Event()
        self.admission: Admission | None = None
        """Answer to the contract; None before the first event."""
        self.finished: Finished | None = None
        """Outcome of the request; None before the last event."""

    def __next__(self) -> Event:
        """Return the next event.

        Raises:
            SlosServeError
        """
        while not self._over.is_set():
            message = self._next_message()
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
        raise StopIteration

    def completion(self) -> Completion:
        """Read the stream to its end and return everything at once.

        Raises:
            SlosServeError
        """
        gathering = Gathering()
        with self:
            for event in self:
                gathering.take(event)
        return gathering.completion()

    def cancel(self) -> None:
        """End the request at the router; the iteration ends."""
        self._over.set()
        call = self._call
        if call is not None:
            call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # `break` out of a loop over an unnamed stream ends here, at once.
        call: Call | None = getattr(self, "_call", None)
        if call is not None:
            call.cancel()

    def _next_message(self) -> inference_pb2.GenerateResponse | None:
        while not self._over.is_set():
            first = self._call is None
            call = self._call or self._start(self._attempts.router, self._attempts.left_s)
            self._call = call
            if self._over.is_set():
                # Cancelled while the call was being made: whoever cancelled did not see it.
                call.cancel()
                return None
            try:
                message = next(call)
            except StopIteration:
                self._over.set()
                return None
            except grpc.RpcError as error:
                self._call = None
                if self._over.is_set():
                    return None
                if not first:
                    self._over.set()
                    raise _typed(error) from error
                self._over.wait(self._attempts.failed(_typed(error)))
                continue
            if first:
                self._attempts.succeeded()
            return message
        return None


class Session:
    """Sends the requests of one task, all to the same router, which knows when the task began."""

    def __init__(self, client: Client, contract: Contract, session_id: str) -> None:
        self._client = client
        self._contract = contract
        self.session_id = session_id

    def generate(self, prompt: Prompt, *, final: bool = False, **options: Unpack[CallOptions]) -> Stream:
        """Send a request as `Client.generate` does, under the session's contract or the one given here.

        Args:
            final: whether it is the last request of the task, for which the contract's `final_decode` applies.
        """
        contract = session_contract(options.get("contract") or self._contract, self.session_id, final=final)
        return self._client._generate(self.session_id, prompt, {**options, "contract": contract})  # noqa: SLF001


def _typed(error: grpc.RpcError) -> SlosServeError:
    # Every error of a call is a call as well; the stubs do not say so.
    call = cast("grpc.Call", error)
    return error_of(call.code(), call.details() or "", tuple(call.trailing_metadata() or ()))
