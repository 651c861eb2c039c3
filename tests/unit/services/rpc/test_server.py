"""gRPC servers and channels: addresses, health, reflection, limits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.network.address import AddressInUseError, BindError, check_address
from services.rpc import health
from services.rpc.channel import open_channel
from services.rpc.errors import InvalidRequestError, abort
from services.rpc.server import RpcServer
from slos_serve.v1 import worker_pb2, worker_pb2_grpc
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WORKER = "slos_serve.v1.Worker"
MIB = 1024 * 1024
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class LengthServicer(worker_pb2_grpc.WorkerServicer):
    """Answers Drain with the size of the request, enough to see messages pass."""

    async def Drain(  # noqa: N802
        self, request: worker_pb2.DrainRequest, context: Any
    ) -> worker_pb2.DrainResponse:
        if request.grace_s < 0:
            await abort(context, InvalidRequestError("must not be negative", field="grace_s"))
        return worker_pb2.DrainResponse(running_requests=request.ByteSize())

    async def Session(  # type: ignore[override]  # noqa: N802
        self, requests: AsyncIterator[worker_pb2.SessionRequest], context: Any
    ) -> None:
        async for request in requests:
            outcome = worker_pb2.RequestFailed(request_id=request.hello.router_id)
            await context.write(worker_pb2.SessionResponse(request_failed=outcome))

    def Describe(self, *_: object) -> worker_pb2.DescribeResponse:  # noqa: N802
        raise NotImplementedError


@contextlib.asynccontextmanager
async def running_server(
    with_reflection: bool = True, with_channelz: bool = False
) -> AsyncIterator[tuple[RpcServer, int]]:
    server = RpcServer([WORKER], MIB, with_reflection=with_reflection, with_channelz=with_channelz)
    worker_pb2_grpc.add_WorkerServicer_to_server(LengthServicer(), server.grpc)
    port = server.bind("127.0.0.1", 0)
    await server.start()
    yield server, port
    await server.stop(0)


async def test_port_0_takes_a_free_one_and_an_address_is_taken_once() -> None:
    async with running_server() as (_, port):
        assert port > 0
        second = RpcServer([WORKER], MIB, with_reflection=False)
        with pytest.raises(AddressInUseError, match=rf"127\.0\.0\.1:{port}: the address is in use"):
            second.bind("127.0.0.1", port)
        with pytest.raises(AddressInUseError):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


async def test_a_host_that_is_not_ours() -> None:
    server = RpcServer([WORKER], MIB, with_reflection=False)
    for port in (0, 5):
        with pytest.raises(BindError) as raised:
            server.bind("192.0.2.1", port)
        assert not isinstance(raised.value, AddressInUseError)


async def test_health_tells_alive_from_ready() -> None:
    async with running_server() as (server, port), open_channel(f"127.0.0.1:{port}", MIB) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            return int(answer.status)

        watch = stub.Watch(health_pb2.HealthCheckRequest(service=WORKER))
        assert (await watch.read()).status == NOT_SERVING
        assert (await status(""), await status(WORKER)) == (SERVING, NOT_SERVING)
        await server.set_serving(WORKER, True)
        assert (await watch.read()).status == SERVING
        assert (await status(""), await status(WORKER)) == (SERVING, SERVING)
        await server.set_serving(WORKER, False)
        assert (await watch.read()).status == NOT_SERVING
        assert (await status(""), await status(WORKER)) == (SERVING, NOT_SERVING)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await status("no.such.Service")
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        watch.cancel()


async def test_watchers_are_bounded_and_checks_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_WATCHERS", 2)
    async with running_server() as (_, port), open_channel(f"127.0.0.1:{port}", MIB) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in (WORKER, "no.such.Service")]
        for watch in watches:
            await watch.read()
        refused = stub.Watch(health_pb2.HealthCheckRequest(service=WORKER), timeout=30)
        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
        watches[0].cancel()
        long = stub.Watch(health_pb2.HealthCheckRequest(service="s" * 257), timeout=30)
        assert await long.code() is grpc.StatusCode.INVALID_ARGUMENT
        watches[0].cancel()

        async def allowed() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await stub.Watch(health_pb2.HealthCheckRequest(service=WORKER)).read()
                return bool(answer.status == NOT_SERVING)
            return False

        # The server hears a moment later that a watcher has left.
        await eventually(allowed)


async def test_reflection_lists_the_services() -> None:
    async with running_server() as (_, port), open_channel(f"127.0.0.1:{port}", MIB) as channel:
        stub = cast("Any", reflection_pb2_grpc.ServerReflectionStub)(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert names == {WORKER, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        await call.done_writing()


async def test_reflection_can_be_left_out() -> None:
    async with running_server(with_reflection=False) as (_, port), open_channel(f"127.0.0.1:{port}", MIB) as channel:
        stub = cast("Any", reflection_pb2_grpc.ServerReflectionStub)(channel)
        call = stub.ServerReflectionInfo()
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_channelz_counts_the_calls_of_this_process_if_it_is_wanted() -> None:
    async with running_server(with_channelz=True) as (_, port), open_channel(f"127.0.0.1:{port}", MIB) as channel:
        await cast("Any", health_pb2_grpc.HealthStub)(channel).Check(health_pb2.HealthCheckRequest())
        stub = cast("Any", channelz_pb2_grpc.ChannelzStub)(channel)
        answer = await stub.GetServers(channelz_pb2.GetServersRequest(start_server_id=0))
        assert max(server.data.calls_started for server in answer.server) >= 1
        reflected = cast("Any", reflection_pb2_grpc.ServerReflectionStub)(channel).ServerReflectionInfo()
        await reflected.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await reflected.read()).list_services_response.service}
        assert "grpc.channelz.v1.Channelz" in names
        await reflected.done_writing()
    async with running_server() as (_, port), open_channel(f"127.0.0.1:{port}", MIB) as channel:
        stub = cast("Any", channelz_pb2_grpc.ChannelzStub)(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetServers(channelz_pb2.GetServersRequest())
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_messages_over_the_limit_are_refused_and_the_next_one_is_served() -> None:
    async with running_server() as (_, port), open_channel(f"127.0.0.1:{port}", 4 * MIB) as channel:
        drain: Any = channel.unary_unary(f"/{WORKER}/Drain", response_deserializer=worker_pb2.DrainResponse.FromString)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await drain(b"\x00" * (MIB + 1))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = await worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest(grace_s=1.0))
        assert answer.running_requests == 9


async def test_a_channel_finds_a_server_that_came_back() -> None:
    async with running_server() as (_, port):
        pass
    async with open_channel(f"127.0.0.1:{port}", MIB) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(health_pb2.HealthCheckRequest())
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        server = RpcServer([WORKER], MIB, with_reflection=False)
        server.bind("127.0.0.1", port)
        await server.start()
        async with asyncio.timeout(5):
            answer = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        assert answer.status == SERVING
        await server.stop(0)


async def test_bytes_that_are_no_message_are_an_invalid_argument(caplog: pytest.LogCaptureFixture) -> None:
    async with running_server() as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        drain: Any = channel.unary_unary(f"/{WORKER}/Drain", request_serializer=None, response_deserializer=None)
        for content in (b"\xff\xff", b"\x0b", b"\x0a\x7fabc"):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await drain(content, timeout=5)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "no such message" in str(raised.value.details())
        assert worker_pb2.DrainResponse.FromString(await drain(b"", timeout=5)).running_requests == 0
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await watch(b"\xff", timeout=5).read()
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in caplog.text


async def test_bytes_that_are_no_message_end_a_stream_with_an_invalid_argument(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = worker_pb2.SessionRequest(hello=worker_pb2.Hello(router_id="r")).SerializeToString()
    reflected = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    async with running_server() as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method, before in ((f"/{WORKER}/Session", [good]), (f"/{WORKER}/Session", []), (reflected, [])):
            call: Any = cast("Any", channel.stream_stream(method, None, None))(timeout=5)
            for content in before:
                await call.write(content)
                assert worker_pb2.SessionResponse.FromString(await call.read()).request_failed.request_id == "r"
            await call.write(b"\x0a\x7fabc")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "no such message" in str(raised.value.details())
        call = cast("Any", channel.stream_stream(f"/{WORKER}/Session", None, None))(timeout=5)
        await call.write(good)
        assert await call.read() is not grpc.aio.EOF
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert "Traceback" not in caplog.text


async def test_a_refused_request_does_not_wait_for_the_garbage_collector() -> None:
    negative = worker_pb2.DrainRequest(grace_s=-1.0).SerializeToString()
    async with running_server() as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        drain: Any = channel.unary_unary(f"/{WORKER}/Drain", request_serializer=None, response_deserializer=None)
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                with pytest.raises(grpc.aio.AioRpcError, match="grace_s"):
                    await drain(negative, timeout=5)
            await asyncio.sleep(0.1)
            kept = [one for one in gc.get_objects() if isinstance(one, worker_pb2.DrainRequest)]
            assert not kept, "the next megabytes come before the collector does"
        finally:
            gc.enable()
