"""The guard of a gRPC server: who gets through to a method, and what everybody else is told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.identity.principal import ANYBODY, Principal, Right, Role
from services.identity.refusal import Cause, CredentialError
from services.rpc.caller import caller, check_again
from services.rpc.channel import open_channel
from services.rpc.errors import RequestError, abort
from services.rpc.guard import OPEN, Guard
from services.rpc.server import RpcServer
from slos_serve.v1 import inference_pb2, inference_pb2_grpc
from tests.support.audit_log import AuditLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 1024 * 1024
SERVICE = "/slos_serve.v1.Inference/"
TABLE = {
    f"{SERVICE}Generate": frozenset({Right.GENERATE}),
    f"{SERVICE}Quote": frozenset({Right.GENERATE}),
    f"{SERVICE}GetClusterState": frozenset({Right.GENERATE, Right.OBSERVE}),
    f"{SERVICE}Cancel": frozenset({Right.OPERATE}),
    "/grpc.health.v1.Health/Check": OPEN,
}
CLIENT = Principal("ci", "acme", frozenset({Role.CLIENT}))
OPERATOR = Principal("ops", "", frozenset({Role.OPERATOR}))


class Names:
    """Takes a name for a credential."""

    async def authenticate(self, authorization: str | None) -> Principal:
        await asyncio.sleep(0)
        match authorization:
            case "Bearer client":
                return CLIENT
            case "Bearer operator":
                return OPERATOR
            case None:
                raise CredentialError(Cause.MISSING)
        raise CredentialError(Cause.EXPIRED)


class Servicer(inference_pb2_grpc.InferenceServicer):
    """Notes on whose behalf it was called."""

    def __init__(self) -> None:
        self.callers: list[Principal] = []

    async def Generate(  # noqa: N802
        self, request: inference_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        for _ in range(3):
            await asyncio.sleep(0)
            self.callers.append(caller())
            yield inference_pb2.GenerateResponse()

    async def Quote(  # noqa: N802
        self, request: inference_pb2.QuoteRequest, context: Any
    ) -> inference_pb2.QuoteResponse:
        self.callers.append(caller())
        return inference_pb2.QuoteResponse()

    async def Cancel(  # noqa: N802
        self, request: inference_pb2.CancelRequest, context: Any
    ) -> inference_pb2.CancelResponse:
        self.callers.append(caller())
        return inference_pb2.CancelResponse()

    async def GetClusterState(  # noqa: N802
        self, request: inference_pb2.GetClusterStateRequest, context: Any
    ) -> inference_pb2.GetClusterStateResponse:
        self.callers.append(await asyncio.create_task(self._in_a_task()))
        return inference_pb2.GetClusterStateResponse()

    async def WatchClusterState(  # noqa: N802
        self, request: inference_pb2.WatchClusterStateRequest, context: Any
    ) -> AsyncIterator[inference_pb2.WatchClusterStateResponse]:
        try:
            while True:
                yield inference_pb2.WatchClusterStateResponse()
                await asyncio.sleep(0.01)
                await check_again()
        except RequestError as error:
            await abort(context, error)

    async def _in_a_task(self) -> Principal:
        return caller()


@contextlib.asynccontextmanager
async def serving(guard: Guard | None) -> AsyncIterator[tuple[Servicer, grpc.aio.Channel]]:
    server = RpcServer(["slos_serve.v1.Inference"], MIB, with_reflection=True, guard=guard)
    servicer = Servicer()
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server.grpc)
    port = server.bind("127.0.0.1", 0)
    await server.start()
    async with open_channel(f"127.0.0.1:{port}", MIB) as channel:
        yield servicer, channel
    await server.stop(0)


def shown(name: str | None) -> tuple[tuple[str, str], ...]:
    return () if name is None else (("authorization", f"Bearer {name}"),)


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    async def answers() -> None:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await answers()
    return raised.value.code(), str(raised.value.details())


async def test_a_call_runs_on_behalf_of_its_caller() -> None:
    async with serving(Guard(Names(), TABLE)) as (servicer, channel):
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        streams = [
            stub.Generate(inference_pb2.GenerateRequest(), metadata=shown("client")),
            stub.GetClusterState(inference_pb2.GetClusterStateRequest(), metadata=shown("operator")),
            stub.Quote(inference_pb2.QuoteRequest(), metadata=shown("client")),
        ]
        assert len([item async for item in streams[0]]) == 3
        await streams[1]
        await streams[2]
    assert sorted(who.name for who in servicer.callers) == ["ci"] * 4 + ["ops"]


async def test_calls_at_the_same_time_have_each_their_own_caller() -> None:
    async with serving(Guard(Names(), TABLE)) as (servicer, channel):
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        names = ["client", "operator"] * 20
        await asyncio.gather(
            *(stub.GetClusterState(inference_pb2.GetClusterStateRequest(), metadata=shown(name)) for name in names)
        )
    assert sorted(who.name for who in servicer.callers) == ["ci"] * 20 + ["ops"] * 20


async def test_without_a_valid_credential_nothing_is_served_and_nothing_is_said_but_that(audit_log: AuditLog) -> None:
    async with serving(Guard(Names(), TABLE)) as (servicer, channel):
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        for call, message in (
            (stub.Generate, inference_pb2.GenerateRequest()),
            (stub.Quote, inference_pb2.QuoteRequest()),
            (stub.WatchClusterState, inference_pb2.WatchClusterStateRequest()),
        ):
            code, said = await failure(call(message))
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert "a credential is needed" in said
            assert await failure(call(message, metadata=shown("expired"))) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "the credential is not valid",
            )
    assert not servicer.callers
    told = [(line["event"], line["target"], line["detail"]) for line in audit_log.lines()]
    assert told == [
        ("authentication", f"{SERVICE}{method}", f"credential {cause}")
        for method in ("Generate", "Quote", "WatchClusterState")
        for cause in ("missing", "expired")
    ]


async def test_a_right_that_is_missing_and_a_method_that_is_not_in_the_table(audit_log: AuditLog) -> None:
    async with serving(Guard(Names(), TABLE)) as (servicer, channel):
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        denied = grpc.StatusCode.PERMISSION_DENIED
        assert (await failure(stub.Generate(inference_pb2.GenerateRequest(), metadata=shown("operator"))))[0] is denied
        assert (await failure(stub.Cancel(inference_pb2.CancelRequest(), metadata=shown("client"))))[0] is denied
        watch = stub.WatchClusterState(inference_pb2.WatchClusterStateRequest(), metadata=shown("operator"))
        assert (await failure(watch))[0] is denied
        reflect: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        assert (await failure(reflect(iter(()))))[0] is grpc.StatusCode.UNAUTHENTICATED
        nowhere: Any = channel.unary_unary("/no.Service/Method")
        assert (await failure(nowhere(b"", metadata=shown("client"))))[0] is denied
    assert not servicer.callers
    lines = [line for line in audit_log.lines() if line["event"] == "permission"]
    assert [(line["who"], line["tenant"] if line["who"] == "ci" else "", line["target"]) for line in lines] == [
        ("ops", "", f"{SERVICE}Generate"),
        ("ci", "acme", f"{SERVICE}Cancel"),
        ("ops", "", f"{SERVICE}WatchClusterState"),
        ("ci", "acme", "/no.Service/Method"),
    ]


async def test_what_is_open_needs_no_credential_and_a_wrong_one_does_no_harm() -> None:
    async with serving(Guard(Names(), TABLE)) as (_, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in (None, "expired", "client"):
            answer = await health.Check(health_pb2.HealthCheckRequest(), metadata=shown(name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_two_credentials_in_one_call_are_none() -> None:
    async with serving(Guard(Names(), TABLE)) as (_, channel):
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        both = (*shown("client"), *shown("operator"))
        code, _said = await failure(stub.Quote(inference_pb2.QuoteRequest(), metadata=both))
        assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_who_may_not_call_learns_nothing_of_what_is_wrong_with_the_message() -> None:
    async with serving(Guard(Names(), TABLE)) as (_, channel):
        quote: Any = channel.unary_unary(f"{SERVICE}Quote")
        assert (await failure(quote(b"\xff\xff")))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert (await failure(quote(b"\xff\xff", metadata=shown("client"))))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_without_a_guard_everybody_is_served_as_anybody() -> None:
    async with serving(None) as (servicer, channel):
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        await stub.Quote(inference_pb2.QuoteRequest(), metadata=shown("expired"))
    assert servicer.callers == [ANYBODY]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"revoked": True}, grpc.StatusCode.UNAUTHENTICATED),
        ({"roles": frozenset({Role.CLIENT})}, grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_a_call_that_lasts_does_not_outlive_its_credential(change: dict[str, Any], code: grpc.StatusCode) -> None:
    class Changing:
        revoked = False
        roles = frozenset({Role.OPERATOR})

        async def authenticate(self, authorization: str | None) -> Principal:
            if self.revoked:
                raise CredentialError(Cause.UNKNOWN)
            return Principal("ops", "", self.roles)

    who = Changing()
    table = {f"{SERVICE}WatchClusterState": frozenset({Right.OBSERVE})}
    async with serving(Guard(who, table)) as (_, channel):
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        call = stub.WatchClusterState(inference_pb2.WatchClusterStateRequest(), metadata=shown("operator"))
        updates = aiter(call)
        for _number in range(3):
            await anext(updates)
        for name, value in change.items():
            setattr(who, name, value)
        assert (await failure(updates))[0] is code
