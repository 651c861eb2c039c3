"""Calls of gRPC services in this process: by bytes and through the interceptors of their server, without sockets."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from services.rpc.errors import ERROR_DOMAIN
from tests.fuzz.watch import FaultError

DETAILS = "grpc-status-details-bin"
PATIENCE_S = 120.0
"""Seconds after which a call counts as hanging. Generous: waiting requests are legitimate, and the machine is busy."""
WRONG = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})


@dataclass(slots=True)
class Door:
    """One gRPC server of this process: what it serves, and where it listens."""

    interceptors: Sequence[grpc.aio.ServerInterceptor]
    methods: dict[str, Any] = field(default_factory=dict)
    address: str = ""

    async def handler(self, method: str, metadata: tuple[tuple[str, str | bytes], ...]) -> Any:
        """Return what the server would run for a call of a method."""
        details = _CallDetails(method, metadata)

        async def last(_details: Any) -> Any:
            return self.methods.get(method)

        following: Callable[[Any], Any] = last
        for interceptor in reversed(self.interceptors):
            following = _before(interceptor, following)
        return await following(details)


def _before(interceptor: Any, following: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def intercept(details: Any) -> Any:
        return await interceptor.intercept_service(following, details)

    return intercept


@dataclass(frozen=True, slots=True)
class _CallDetails:
    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...]


class _RecordingServer:
    """A gRPC server that tells a door what it serves."""

    def __init__(self, server: Any, door: Door) -> None:
        self._server = server
        self._door = door

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._door.methods |= {f"/{service}/{name}": handler for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, handlers)

    def add_insecure_port(self, address: str) -> int:
        port: int = self._server.add_insecure_port(address)
        self._door.address = f"127.0.0.1:{port}"
        return port


@contextlib.contextmanager
def recorded_servers() -> Iterator[list[Door]]:
    """Note every gRPC server that this process makes meanwhile."""
    doors: list[Door] = []
    make = grpc.aio.server

    def server(*, interceptors: Sequence[Any] = (), **options: Any) -> Any:
        doors.append(Door(tuple(interceptors)))
        return _RecordingServer(make(interceptors=interceptors, **options), doors[-1])

    grpc.aio.server = server  # type: ignore[assignment]
    try:
        yield doors
    finally:
        grpc.aio.server = make


class AbortedCallError(grpc.aio.AbortError):
    """The service ended the call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Sequence[tuple[str, Any]]) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailing = trailing


class ClientLeft(Exception):  # noqa: N818 -- no error
    """The client has read as much as it wanted to."""


class _Context:
    """As much of gRPC's `ServicerContext` as servicers of ours and of libraries use."""

    def __init__(self, metadata: tuple[tuple[str, str | bytes], ...], enough: Callable[[Any, int], bool]) -> None:
        self.answers = 0
        self._metadata = metadata
        self._enough = enough
        self._left = asyncio.Event()

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:40000"

    def auth_context(self) -> dict[str, Any]:
        return {}

    def peer_identities(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: Any) -> None:
        _check_metadata(metadata)

    async def send_initial_metadata(self, metadata: Any) -> None:
        _check_metadata(metadata)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        _check_metadata(trailing_metadata)
        raise AbortedCallError(code, details, tuple(trailing_metadata))

    async def write(self, answer: Any) -> None:
        self.answers += 1
        # As on the wire, others run while a message is sent.
        await asyncio.sleep(0)
        if self._enough(answer, self.answers):
            self._left.set()
            await asyncio.Event().wait()

    async def left(self) -> None:
        await self._left.wait()

    def set_code(self, code: grpc.StatusCode) -> None:
        raise FaultError(f"a status without details: {code}")

    def set_details(self, details: str) -> None:
        raise FaultError(f"a status without details: {details}")

    def add_done_callback(self, callback: Any) -> None:
        pass

    def time_remaining(self) -> None:
        return None

    def cancelled(self) -> bool:
        return self._left.is_set()


def _check_metadata(metadata: Any) -> None:
    for key, value in metadata or ():
        if key.endswith("-bin") != isinstance(value, bytes) or len(value) > 8192:
            raise FaultError(f"metadata {key} cannot be sent: {value!r}"[:500])
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise FaultError(f"metadata {key} cannot be sent: {value!r}"[:500])


async def call(
    door: Door,
    method: str,
    content: bytes | Sequence[bytes],
    metadata: tuple[tuple[str, str | bytes], ...] = (),
    *,
    enough: Callable[[Any, int], bool],
    idle_s: float = 0.02,
    stays_s: float | None = None,
    answers: Callable[[Any], object] = lambda _answer: None,
) -> str:
    """Call a method by bytes as a client that leaves when it has read enough; return how the call ended.

    Args:
        enough: whether a client that got this answer, the how many-th it is, leaves.
        idle_s: seconds that a client which streams keeps its call open after its last message.
        stays_s: seconds after which a client leaves that has had no answer; None: it has a right to one.
        answers: told of the answer of a method that gives one.

    Raises:
        FaultError: the call did not end, or ended as no call may.
    """
    handler = await door.handler(method, metadata)
    if handler is None:
        return "UNIMPLEMENTED"
    context = _Context(metadata, enough)
    serving = asyncio.ensure_future(_serve(handler, content, context, idle_s, answers))
    leaving = asyncio.ensure_future(context.left())
    try:
        waits_s = PATIENCE_S if stays_s is None else stays_s
        done, _ = await asyncio.wait((serving, leaving), timeout=waits_s, return_when=asyncio.FIRST_COMPLETED)
        if not done and stays_s is not None:
            return "left waiting"
        if not done:
            raise FaultError(f"no answer within {PATIENCE_S:g} s")
        if serving not in done:
            return "OK, left"
        return _outcome(serving)
    finally:
        for task in (serving, leaving):
            task.cancel()
        await asyncio.gather(serving, leaving, return_exceptions=True)


def _outcome(serving: asyncio.Future[None]) -> str:
    error = serving.exception()
    if error is None:
        return "OK"
    if isinstance(error, ClientLeft):
        return "OK, left"
    if not isinstance(error, AbortedCallError):
        raise FaultError("the service raised " + "".join(traceback.format_exception(error))[-4000:]) from error
    return check_status(error.code, error.details, error.trailing)


def check_status(code: grpc.StatusCode, details: str, trailing: Sequence[tuple[str, Any]]) -> str:
    """Return the name of a status that a client may get.

    Raises:
        FaultError: it is none of those, or says nothing that a program can read.
    """
    if code in WRONG:
        raise FaultError(f"{code.name}: {details}"[:1000])
    packed = dict(trailing).get(DETAILS)
    if not isinstance(packed, bytes):
        raise FaultError(f"{code.name} without details: {details}"[:1000])
    status = status_pb2.Status.FromString(packed)
    info = error_details_pb2.ErrorInfo()
    if not any(detail.Unpack(info) for detail in status.details) or info.domain != ERROR_DOMAIN:
        raise FaultError(f"{code.name} without a reason: {details}"[:1000])
    return f"{code.name} {info.reason}"


async def _serve(
    handler: Any,
    content: bytes | Sequence[bytes],
    context: _Context,
    idle_s: float,
    answers: Callable[[Any], object],
) -> None:
    read = handler.request_deserializer
    if isinstance(content, bytes):
        request: Any = read(content)
    else:
        request = _requests(read, content, idle_s)
    serve = handler.unary_unary or handler.unary_stream or handler.stream_stream or handler.stream_unary
    answer = serve(request, context)
    if isinstance(answer, AsyncIterator):
        async with contextlib.aclosing(answer) as stream:  # type: ignore[type-var]
            async for one in stream:
                _serialize(handler, one)
                await context.write(one)
        return
    answer = await answer
    if answer is not None:
        _serialize(handler, answer)
        answers(answer)


def _serialize(handler: Any, answer: Any) -> None:
    try:
        handler.response_serializer(answer)
    except Exception as error:
        raise FaultError(f"an answer cannot be written: {error!r}") from error


async def _requests(read: Callable[[bytes], Any], frames: Sequence[bytes], idle_s: float) -> AsyncIterator[Any]:
    for frame in frames:
        yield read(frame)
        await asyncio.sleep(0)
    await asyncio.sleep(idle_s)
