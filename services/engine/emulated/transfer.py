"""Hand-over of KV caches between processes: real connections, leases and failures; only the bytes stay where they are.

One TCP connection per pull, one JSON message a line:

    puller    {"lease_id", "engine_epoch"}
    exporter  {"kind": "granted", "tokens", "kv_bytes", "context_digest"}     or {"kind": "gone", "reason"}
    exporter  {"kind": "arrived"}, after the time the bytes take              or {"kind": "gone", "reason"}
    puller    {"kind": "confirmed"}; the exporter frees the blocks

A connection that ends before the confirmation leaves the lease open until it is pulled, released or expires. Both sides
take what they read for hostile.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from services.engine.emulated.leases import Lease, LeaseTable, LeaseUnavailableError
from services.engine.emulated.link import Link
from services.engine.kv.handle import LeaseOutcome

MAX_MESSAGE_BYTES = 4096
REPLY_TIMEOUT_S = 5.0
"""For everything that takes no transfer: to connect, to ask, to be answered, to confirm."""

logger = logging.getLogger(__name__)


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class TransferParams(Message):
    """What a KV handle's `transfer_params_json` holds."""

    host: str = Field(min_length=1, max_length=253)
    port: int = Field(ge=1, le=65535)


class PullRequest(Message):
    lease_id: str = Field(max_length=128)
    engine_epoch: str = Field(max_length=128)


class Granted(Message):
    kind: Literal["granted"] = "granted"
    tokens: int = Field(ge=1)
    kv_bytes: int = Field(ge=0)
    context_digest: str = Field(max_length=128)


class Gone(Message):
    kind: Literal["gone"] = "gone"
    reason: str


class Arrived(Message):
    kind: Literal["arrived"] = "arrived"


class Confirmed(Message):
    kind: Literal["confirmed"] = "confirmed"


Reply = Annotated[Granted | Gone | Arrived, Field(discriminator="kind")]
REPLIES: TypeAdapter[Granted | Gone | Arrived] = TypeAdapter(Reply)


class Exporter:
    """Offers the leases of one engine to every engine that can connect."""

    def __init__(self, leases: LeaseTable, link: Link, engine_epoch: str) -> None:
        self._leases = leases
        self._link = link
        self._engine_epoch = engine_epoch
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str) -> TransferParams:
        """Listen on a free port.

        Raises:
            OSError: the host is no address of this machine.
        """
        self._server = await asyncio.start_server(self._connected, host, 0, limit=MAX_MESSAGE_BYTES)
        port = self._server.sockets[0].getsockname()[1]
        return TransferParams(host=socket.gethostname() if _is_any_address(host) else host, port=port)

    async def shut_down(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            logger.info("a pull from %s failed: %s", writer.get_extra_info("peername"), error)
        except asyncio.CancelledError:
            # Only shut_down cancels; asyncio's stream server would report the cancellation as an unhandled error.
            logger.debug("a pull from %s was cut off by shutdown", writer.get_extra_info("peername"))
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            request = PullRequest.model_validate_json(await reader.readuntil())
        if request.engine_epoch != self._engine_epoch:
            await send(writer, Gone(reason="the lease belongs to an engine that is gone"))
            return
        try:
            lease = self._leases.begin_pull(request.lease_id)
        except LeaseUnavailableError as error:
            await send(writer, Gone(reason=str(error)))
            return
        try:
            await self._hand_over(lease, reader, writer)
        finally:
            self._leases.end_pull(lease)

    async def _hand_over(self, lease: Lease, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        export = lease.export
        await send(writer, Granted(tokens=export.tokens, kv_bytes=lease.kv_bytes, context_digest=export.context_digest))
        arrival = asyncio.ensure_future(self._link.carry(lease.kv_bytes))
        closing = asyncio.ensure_future(lease.closed.wait())
        answer = asyncio.ensure_future(reader.readuntil())
        try:
            await asyncio.wait((arrival, closing, answer), return_when=asyncio.FIRST_COMPLETED)
            if closing.done():
                await send(writer, Gone(reason=self._leases.outcome(lease.lease_id)))
            elif answer.done():
                answer.result()
                raise ValueError("the puller spoke out of turn")
            else:
                arrival.result()
                await send(writer, Arrived())
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    Confirmed.model_validate_json(await answer)
                self._leases.close(lease.lease_id, LeaseOutcome.PULLED)
        finally:
            for waiting in (arrival, closing, answer):
                waiting.cancel()
            await asyncio.gather(arrival, closing, answer, return_exceptions=True)


async def send(writer: asyncio.StreamWriter, message: Message) -> None:
    """Write one line."""
    writer.write(message.model_dump_json().encode() + b"\n")
    await writer.drain()


def _is_any_address(host: str) -> bool:
    """Nobody can connect to the address that means all addresses."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host
