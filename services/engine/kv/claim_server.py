"""The exporter's side of the claim protocol."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Generic

from services.audit import EventKind, Outcome, note
from services.engine.kv.address import ClaimAddress
from services.engine.kv.backend import KvExporter
from services.engine.kv.desk_tls import DeskTls
from services.engine.kv.leases import Lease, LeaseTable, LeaseUnavailableError, OfferT, UnknownLeaseError

CLAIM_WAIT_S = 5.0
"""Seconds that somebody who has connected may take to say which lease is claimed."""
MAX_SILENT = 256
"""Number of connections that may be open without a claim. Claims follow at once on their connection, so that a few are
open at any time; more would be somebody who uses up the files that the process may open."""
MAX_CLAIM_BYTES = 4096
"""Length of the longest line that a claimant may send; claims hold two ids and a secret."""

log = logging.getLogger(__name__)


class ClaimServer(Generic[OfferT]):
    """Answers every engine that can connect. What it reads may come from anybody, and only a secret gets a lease."""

    def __init__(
        self,
        leases: LeaseTable[OfferT],
        exporter: KvExporter[OfferT],
        ended: Callable[[Lease[OfferT], bool], None],
        tls: DeskTls | None = None,
    ) -> None:
        """
        Args:
            ended: told of each claim that is over, and whether it was confirmed.
            tls: encrypts connections and says who may claim; None: they are in the clear.
        """
        self._leases = leases
        self._exporter = exporter
        self._ended = ended
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._visits: set[asyncio.Task[None]] = set()
        self._cut_off: dict[str, asyncio.Event] = {}
        """Set while the lease of this id is claimed: its bytes must not be sent any further."""

    async def start(self, host: str) -> ClaimAddress:
        """Listen on a free port.

        Raises:
            OSError: the host is no address of this machine.
        """
        self._server = await asyncio.start_server(
            self._visit,
            host,
            0,
            limit=MAX_CLAIM_BYTES,
            ssl=None if self._tls is None else self._tls.server(),
            ssl_handshake_timeout=None if self._tls is None else CLAIM_WAIT_S,
        )
        port = self._server.sockets[0].getsockname()[1]
        return ClaimAddress(host=socket.gethostname() if _is_any_address(host) else host, port=port)

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
        visits = list(self._visits)
        for visit in visits:
            visit.cancel()
        await asyncio.gather(*visits, return_exceptions=True)

    def cut_off(self, lease_id: str) -> None:
        """Send no more bytes of a lease that has ended."""
        event = self._cut_off.get(lease_id)
        if event is not None:
            event.set()

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._visits) - len(self._cut_off) >= MAX_SILENT:
            log.info("a connection from %s is one too many", writer.get_extra_info("peername"))
            writer.transport.abort()
            return
        self._visits.add(task)
        task.add_done_callback(self._visits.discard)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            log.info("a claim from %s failed: %s", writer.get_extra_info("peername"), error)
            writer.transport.abort()
        except asyncio.CancelledError:
            # Only `stop` cancels visits, and asyncio's server would report the cancellation as an unhandled error.
            log.debug("a claim from %s was cut off by shutdown", writer.get_extra_info("peername"))
            writer.transport.abort()
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        refusal = "" if self._tls is None else self._tls.refusal(writer.get_extra_info("peercert"))
        if refusal:
            log.warning("a claim from %s was refused: %s", writer.get_extra_info("peername"), refusal)
            note(EventKind.LEASE, Outcome.REFUSED, "any", peer=_peer_host(writer), detail=refusal)
            return
        async with asyncio.timeout(CLAIM_WAIT_S):
            asked = self._exporter.parse_claim(await reader.readuntil())
        try:
            lease = self._leases.claim(asked.lease_id, asked.secret, asked.engine_epoch, _now_s())
        except LeaseUnavailableError as error:
            log.info("a claim from %s was refused: %s", writer.get_extra_info("peername"), error)
            if isinstance(error, UnknownLeaseError):
                note(EventKind.LEASE, Outcome.REFUSED, asked.lease_id, peer=_peer_host(writer), detail=str(error))
            await _send(writer, self._exporter.refuse(str(error)))
            return
        confirmed = False
        cut_off = self._cut_off[lease.lease_id] = asyncio.Event()
        try:
            confirmed = await self._hand_over(lease, cut_off, reader, writer)
        finally:
            del self._cut_off[lease.lease_id]
            self._ended(lease, confirmed)

    async def _hand_over(
        self,
        lease: Lease[OfferT],
        cut_off: asyncio.Event,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Return whether the claimant has confirmed that it has everything."""
        await _send(writer, self._exporter.grant(lease.offer, lease.until_s - _now_s()))
        sending = asyncio.ensure_future(self._exporter.send(lease.offer))
        ending = asyncio.ensure_future(cut_off.wait())
        answer = asyncio.ensure_future(reader.readuntil())
        try:
            await asyncio.wait((sending, ending, answer), return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                await _send(writer, self._exporter.refuse(self._leases.outcome(lease.lease_id)))
                return False
            if not sending.done():
                answer.result()
                raise ValueError("the claimant spoke out of turn")
            await _send(writer, sending.result())
            async with asyncio.timeout_at(self._leases.confirmation_due_s(lease, _now_s())):
                return self._exporter.is_confirmation(await answer)
        finally:
            for waiting in (sending, ending, answer):
                waiting.cancel()
            await asyncio.gather(sending, ending, answer, return_exceptions=True)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


async def _send(writer: asyncio.StreamWriter, line: bytes) -> None:
    writer.write(line)
    await writer.drain()


def _peer_host(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return str(name[0]) if name else ""


def _is_any_address(host: str) -> bool:
    """Return whether nobody can connect to this host, because it stands for all addresses of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host
