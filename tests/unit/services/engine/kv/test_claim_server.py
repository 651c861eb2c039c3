"""What a claim server says of the end of each claim, over real sockets in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from services.engine.kv.claim_server import ClaimServer
from services.engine.kv.leases import Lease, LeaseTable
from tests.support.virtual_time import run_virtual
from tests.unit.services.engine.kv.kv_support import (
    EMULATED,
    MARGIN_S,
    PROMPT,
    TRANSFER_S,
    emulated_backend,
    now_s,
    settle,
)

CLAIM = b'{"lease_id": "a", "secret": "secret", "engine_epoch": "epoch"}\n'
CONFIRMED = b'{"kind": "confirmed"}\n'

Story = Callable[[ClaimServer[Any], asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ends(story: Story) -> list[tuple[str, bool]]:
    """Return what the server said of the ends of claims in a story, in which lease "a" is claimed once."""
    told: list[tuple[str, bool]] = []

    def ended(lease: Lease[Any], confirmed: bool) -> None:
        told.append((lease.lease_id, confirmed))

    async def run() -> None:
        leases: LeaseTable[Any] = LeaseTable("epoch", MARGIN_S, one_sided=False)
        until_s = now_s() + 10.0
        leases.open("a", "secret", EMULATED.offer(PROMPT, until_s), until_s)
        server = ClaimServer(leases, emulated_backend(), ended)
        address = await server.start("127.0.0.1")
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(CLAIM)
        assert b"granted" in await reader.readline()
        await story(server, reader, writer)
        writer.close()
        await settle()
        await server.stop()

    run_virtual(run())
    return told


def test_a_claim_is_confirmed_by_the_claimant() -> None:
    async def story(server: ClaimServer[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"arrived" in await reader.readline()
        writer.write(CONFIRMED)
        await writer.drain()
        assert await reader.read() == b""

    assert ends(story) == [("a", True)]


def test_a_claim_that_is_cut_off_half_way_is_not_confirmed() -> None:
    async def story(server: ClaimServer[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(TRANSFER_S / 2)
        server.cut_off("a")
        assert b"gone" in await reader.readline()
        writer.write(CONFIRMED)
        with contextlib.suppress(OSError):
            assert await reader.read() == b""

    assert ends(story) == [("a", False)]


def test_a_claimant_that_leaves_has_not_confirmed() -> None:
    async def story(server: ClaimServer[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    assert ends(story) == [("a", False)]


def test_cutting_off_what_nobody_claims_changes_nothing() -> None:
    async def story(server: ClaimServer[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.cut_off("another")
        assert b"arrived" in await reader.readline()
        writer.write(CONFIRMED)
        assert await reader.read() == b""

    assert ends(story) == [("a", True)]
