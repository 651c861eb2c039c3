"""The exporter's side of the claim protocol."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Generic

from services.audit import EventKind, Outcome, note
from services.engine.kv.address import ClaimAddress
from services.engine.kv.backend import KvExporter
from services.engine.kv.desk_tls import DeskTls
from services.engine.kv.leases import Lease, LeaseTable, LeaseUnavailableError, OfferT, UnknownLeaseError
from services.network.address import BindError, listening_socket

CLAIM_WAIT_S = 5.0
"""Seconds that somebody who has connected may take to say which lease is claimed, the TLS handshake included."""
BACKLOG = 100
"""Number of connections that may wait to be accepted, as in asyncio's own servers."""
ACCEPT_RETRY_S = 1.0
"""Seconds until connections are accepted again after the system gave none, for example for want of open files."""
MAX_SILENT = 256
"""Number of connections that may be open without a claim, in the TLS handshake or after it. Claims follow at once on
their connection, so that a few are open at any time; more would be somebody who uses up the files that the process may
open."""
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
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._visits: set[asyncio.Task[None]] = set()
        self._cut_off: dict[str, asyncio.Event] = {}
        """Set while the lease of this id is claimed: its bytes must not be sent any further."""

    async def start(self, host: str) -> ClaimAddress:
        """Listen on a free port.

        Raises:
            OSError: the host is no address of this machine.
        """
        try:
            self._listening = listening_socket(host, 0, BACKLOG)
        except BindError as error:
            raise OSError(error.detail) from error
        self._listening.setblocking(False)
        context = None if self._tls is None else self._tls.server()
        self._accepting = asyncio.create_task(self._accept(self._listening, context))
        port = self._listening.getsockname()[1]
        return ClaimAddress(host=socket.gethostname() if _is_any_address(host) else host, port=port)

    async def stop(self) -> None:
        """Close the port and every connection."""
        ending = [*self._visits, *([] if self._accepting is None else [self._accepting])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()

    def cut_off(self, lease_id: str) -> None:
        """Send no more bytes of a lease that has ended."""
        event = self._cut_off.get(lease_id)
        if event is not None:
            event.set()

    async def _accept(self, listening: socket.socket, context: ssl.SSLContext | None) -> None:
        """Take connections for ever.

        They are counted before a TLS handshake begins, which asyncio's own server tells nobody about: whoever never
        ends the handshake would hold any number of open files.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("no connection for a claim could be accepted: %s", error)
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            if len(self._visits) - len(self._cut_off) >= MAX_SILENT:
                log.info("a connection from %s is one too many", address[0])
                accepted.close()
            else:
                visit = asyncio.create_task(self._visit(accepted, str(address[0]), context))
                self._visits.add(visit)
                visit.add_done_callback(self._visits.discard)
            # Taking a connection that waits already does not suspend: a flood of them would hold up everything else.
            await asyncio.sleep(0)

    async def _visit(self, accepted: socket.socket, peer: str, context: ssl.SSLContext | None) -> None:
        due_s = _now_s() + CLAIM_WAIT_S
        try:
            async with asyncio.timeout_at(due_s):
                reader, writer = await _streams(accepted, context)
            try:
                await self._serve(reader, writer, peer, due_s)
            except BaseException:
                writer.transport.abort()
                raise
            writer.close()
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            log.info("a claim from %s failed: %s", peer, error)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str, due_s: float) -> None:
        refusal = "" if self._tls is None else self._tls.refusal(writer.get_extra_info("peercert"))
        if refusal:
            log.warning("a claim from %s was refused: %s", peer, refusal)
            note(EventKind.LEASE, Outcome.REFUSED, "any", peer=peer, detail=refusal)
            return
        async with asyncio.timeout_at(due_s):
            asked = self._exporter.parse_claim(await reader.readuntil())
        try:
            lease = self._leases.claim(asked.lease_id, asked.secret, asked.engine_epoch, _now_s())
        except LeaseUnavailableError as error:
            log.info("a claim from %s was refused: %s", peer, error)
            if isinstance(error, UnknownLeaseError):
                note(EventKind.LEASE, Outcome.REFUSED, asked.lease_id, peer=peer, detail=str(error))
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


async def _streams(
    accepted: socket.socket, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the two directions of an accepted connection, once its TLS handshake has succeeded if there is one."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(MAX_CLAIM_BYTES, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=context)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _is_any_address(host: str) -> bool:
    """Return whether nobody can connect to this host, because it stands for all addresses of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host
