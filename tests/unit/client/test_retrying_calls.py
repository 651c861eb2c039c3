"""Calls of both clients are sent again only when the router says when, and only before anything arrived."""

from __future__ import annotations

import asyncio

import pytest

from services.rpc import errors as server
from slos_serve import AsyncClient, Client, RefusedError, RetryPolicy
from tests.unit.client.scripted import Script, scripted, whole_stream


def refusal(retry_after_s: float | None = 0.01) -> Script:
    return [server.OverloadedError("full", retry_after_s=retry_after_s)]


async def outcome(address: str, policy: RetryPolicy, *, blocking: bool, timeout_s: float | None = None) -> str:
    def ask() -> str:
        with Client(address, retry=policy) as client:
            return client.generate("x", timeout_s=timeout_s).completion().text

    if blocking:
        return await asyncio.to_thread(ask)
    async with AsyncClient(address, retry=policy) as client:
        return (await client.generate("x", timeout_s=timeout_s).completion()).text


both = pytest.mark.parametrize("blocking", [False, True])


@both
async def test_a_refusal_with_a_time_is_retried(*, blocking: bool) -> None:
    with scripted(refusal(), refusal(), whole_stream()) as router:
        assert await outcome(router.address, RetryPolicy(), blocking=blocking) == "Hello world"
        assert len(router.requests) == 3


@both
async def test_a_refusal_without_a_time_is_not_retried(*, blocking: bool) -> None:
    with scripted(refusal(None), whole_stream()) as router:
        with pytest.raises(RefusedError):
            await outcome(router.address, RetryPolicy(), blocking=blocking)
        assert len(router.requests) == 1


@both
async def test_retries_are_bounded_in_number_and_time(*, blocking: bool) -> None:
    with scripted(refusal()) as router:
        with pytest.raises(RefusedError):
            await outcome(router.address, RetryPolicy(max_attempts=3), blocking=blocking)
        assert len(router.requests) == 3
    for policy, timeout_s in ((RetryPolicy(max_wait_s=30), None), (RetryPolicy(max_wait_s=1e6), 50.0)):
        with scripted(refusal(3600.0)) as router:
            with pytest.raises(RefusedError):
                await outcome(router.address, policy, blocking=blocking, timeout_s=timeout_s)
            assert len(router.requests) == 1, "nobody waits longer than the call may take"


@both
async def test_a_router_that_is_gone_or_drains_hands_over_to_the_next(*, blocking: bool) -> None:
    draining: Script = [server.DrainingError("shutting down", retry_after_s=60.0)]
    with scripted(draining) as leaving, scripted(whole_stream()) as staying:
        addresses = ("127.0.0.1:1", leaving.address, staying.address)
        async with AsyncClient(*addresses) as client:
            for _ in range(6):
                if blocking:
                    with Client(*addresses) as other:
                        assert (await asyncio.to_thread(other.generate("x").completion)).text == "Hello world"
                else:
                    assert (await client.generate("x").completion()).text == "Hello world"
        assert len(staying.requests) == 6
        if not blocking:
            assert len(leaving.requests) <= 1, "asked last once it said that it leaves"


def test_a_client_needs_an_address() -> None:
    with pytest.raises(ValueError, match="address"):
        Client()
