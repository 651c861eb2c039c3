"""A server that is not ours, or behaves badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from benchmarks.load.driving import drive
from benchmarks.load.exchange import End, Exchange, Verdict
from benchmarks.load.http_wire import HttpWire
from benchmarks.load.schedule import Planned, Schedule
from benchmarks.load.wire import TargetError
from benchmarks.prompts import TokenRange
from benchmarks.requested_slo import RequestedSlo, parse_slo
from services.slo.contract import PAPER_PROFILES, ProfileBook

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def chunk(text: str, reason: str | None = None, **more: Any) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": reason}], **more})


def says(*pieces: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0)
        await response.write_eof()
        return response

    return handle


@asynccontextmanager
async def server(handle: Handler) -> AsyncIterator[tuple[HttpWire, list[dict[str, Any]]]]:
    bodies: list[dict[str, Any]] = []

    async def completions(request: web.Request) -> web.StreamResponse:
        bodies.append(json.loads(await request.read()))
        return await handle(request)

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "some-model"}]})

    app = web.Application()
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    wire = HttpWire(
        f"http://127.0.0.1:{port}/v1",
        certificates=None,
        key="secret",
        model="",
        profiles=ProfileBook(PAPER_PROFILES),
        among=TokenRange(),
        seed=1,
    )
    try:
        yield wire, bodies
    finally:
        await wire.close()
        await runner.cleanup()


async def one(wire: HttpWire, ask: RequestedSlo) -> Exchange:
    schedule = Schedule((Planned(0, 0.0, ask, 100, 3),), 1.0)
    run = await drive(wire, schedule, patience_s=5.0, stop=asyncio.Event())
    return run.exchanges[0]


async def test_a_stock_server_is_held_to_a_slowdown_of_what_it_takes_alone() -> None:
    counted = [
        chunk("a", usage={"completion_tokens": 1}),
        chunk("b" * 9, usage={"completion_tokens": 3}),
        chunk("", "length", usage={"completion_tokens": 3}),
        event({"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 64}}}),
        b"data: [DONE]\n\n",
    ]
    async with server(says(*counted)) as (wire, bodies):
        found = await wire.look((parse_slo("chatbot"), RequestedSlo()))
        assert (found.model, found.promises) == ("some-model", False)
        assert {len(body["prompt"]) for body in bodies} == {1, 16, 256, 1024}
        exchange = await one(wire, parse_slo("chatbot"))
    assert exchange.end is End.COMPLETE
    assert [count for _, count in exchange.arrivals] == [1, 2]
    assert (exchange.hidden_tokens, exchange.cached_tokens) == (0, 64)
    assert exchange.answer is not None
    assert exchange.answer.verdict is Verdict.NONE
    assert exchange.answer.contract.prefill is not None
    assert exchange.answer.contract.prefill.ttft_s is not None
    assert exchange.answer.contract.decode == PAPER_PROFILES["chatbot"].decode


async def test_a_server_that_counts_only_at_the_end() -> None:
    pieces = [
        chunk("a"),
        chunk(""),
        chunk("bc"),
        chunk("", "stop"),
        event({"choices": [], "usage": {"completion_tokens": 5}}),
    ]
    async with server(says(*pieces)) as (wire, bodies):
        exchange = await one(wire, parse_slo("ttft=2,tpot=1"))
        assert bodies[0]["stream_options"]["continuous_usage_stats"]
    assert exchange.kept
    assert exchange.token_count == 2
    assert exchange.hidden_tokens == 3


async def test_events_torn_anywhere_are_whole_again() -> None:
    whole = (chunk("a") + chunk("b") + chunk("", "length") + b"data: [DONE]\n\n").replace(b"\n", b"\r\n")
    async with server(says(*(whole[at : at + 7] for at in range(0, len(whole), 7)))) as (wire, _):
        exchange = await one(wire, RequestedSlo())
    assert exchange.end is End.COMPLETE
    assert exchange.token_count == 2


@pytest.mark.parametrize(
    ("handle", "end", "reason"),
    [
        (says(b'{"error": {"code": "x"}}', status=429), End.REFUSED, "x"),
        (says(b"busy", status=429, headers={"x-slo-binding": "kv_memory"}), End.REFUSED, "kv_memory"),
        (says(b'{"error": {"code": "impossible_contract"}}', status=400), End.REFUSED, "impossible_contract"),
        (says(b'{"error": {"type": "oops", "code": null}}', status=500), End.ERROR, "500 oops"),
        (says(b"<html>", status=503), End.ERROR, "503"),
        (says(chunk("a")), End.ERROR, "broken_off"),
        (says(chunk("a"), event({"error": {"code": "worker_lost", "message": "gone"}})), End.ERROR, "worker_lost"),
        (says(b"data: {torn\n\n"), End.ERROR, "invalid_event"),
        (says(chunk("a", "abort")), End.ERROR, "broken_off"),
    ],
)
async def test_what_is_no_answer(handle: Handler, end: End, reason: str) -> None:
    async with server(handle) as (wire, _):
        exchange = await one(wire, RequestedSlo())
    assert (exchange.end, exchange.reason) == (end, reason)
    assert not exchange.kept


async def test_what_our_gateway_says_is_in_force() -> None:
    headers = {
        "x-slo-verdict": "guaranteed",
        "x-slo-ttft-ms": "500",
        "x-slo-tpot-ms": "50",
        "x-slo-bound-ttft-ms": "100",
        "x-slo-emulated": "true",
    }
    slo = {"kept": False, "missed": "late", "ttft_ms": 20, "tpot_ms": 10, "phases_ms": {"queue": 1.5}}
    pieces = [chunk("a", usage={"completion_tokens": 1}), chunk("", "length", usage={"completion_tokens": 1}, slo=slo)]
    async with server(says(*pieces, headers=headers)) as (wire, _):
        found = await wire.look((RequestedSlo("coder"),))
        assert (found.promises, found.emulated) == (True, True)
        exchange = await one(wire, RequestedSlo("reasoning"))
    assert exchange.answer is not None
    assert exchange.answer.verdict is Verdict.GUARANTEED
    assert exchange.answer.contract.prefill is not None
    assert exchange.answer.contract.prefill.ttft_s == 0.5
    assert exchange.answer.contract.decode == PAPER_PROFILES["reasoning"].decode, "not its tightest stage alone"
    assert exchange.claims is not None
    assert exchange.claims.phases_s == {"queue": 0.0015}
    assert exchange.kept, "measured here, whatever the server says"


async def test_a_profile_that_a_stock_server_does_not_know_and_nobody_here() -> None:
    async with server(says(chunk("a", "length"))) as (wire, _):
        with pytest.raises(TargetError, match="nobody"):
            await wire.look((RequestedSlo("nobody"),))
    async with server(says(b"no", status=401)) as (wire, _):
        with pytest.raises(TargetError, match="asked for none: no"):
            await wire.look((RequestedSlo(),))
