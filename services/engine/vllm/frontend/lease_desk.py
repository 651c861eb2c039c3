"""Who may pull a KV cache: the producer's say, asked once per pull.

A read over NIXL is one-sided: the producer cannot refuse it, and blocks freed meanwhile are read without an error. So
the pulling side first claims the lease from the producer's front-end and keeps the connection open until it no longer
reads. A lease is granted to one claimant; the connection's end without a confirmation frees the blocks, which also
covers a claimant that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

_LINE_LIMIT = 4 * 2**20
_CLAIM_WAIT_S = 5.0
_PULLED = b"pulled\n"


class ClaimRefusedError(Exception):
    """The producer cannot be reached or does not grant the lease; the message says why."""


@dataclass(slots=True)
class _Lease:
    terms: Mapping[str, Any]
    deadline_s: float
    claimed: bool = False


class KvLeaseServer:
    """The producer's side. Times are on the event loop's clock, which is the monotonic one.

    Args:
        margin_s: a lease with no more than this left is not granted.
        release: frees the blocks of a lease.
    """

    def __init__(self, host: str, margin_s: float, release: Callable[[str], Awaitable[None]]) -> None:
        self._host = host
        self._margin_s = margin_s
        self._release = release
        self._leases: dict[str, _Lease] = {}
        self._server: asyncio.Server | None = None
        self._visits: set[asyncio.Task[None]] = set()
        self.address = ("", 0)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._visit, self._host, 0, limit=_LINE_LIMIT)
        self.address = (self._host, self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for visit in self._visits:
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)

    def open(self, lease_id: str, terms: Mapping[str, Any], deadline_s: float) -> None:
        self._leases[lease_id] = _Lease(terms, deadline_s)

    def close(self, lease_id: str) -> None:
        """The blocks are free; nobody may claim them any more."""
        self._leases.pop(lease_id, None)

    async def release(self, lease_id: str) -> None:
        """Free the blocks, unless somebody may be reading them: then their connection's end does."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.claimed:
            return
        self.close(lease_id)
        await self._release(lease_id)

    def _grant(self, lease_id: str, now_s: float) -> dict[str, Any]:
        lease = self._leases.get(lease_id)
        if lease is None:
            return {"refused": "the producer holds no such lease: it ran out, or was pulled or released before"}
        if lease.claimed:
            return {"refused": "the lease was claimed before"}
        remaining_s = lease.deadline_s - now_s
        if remaining_s <= self._margin_s:
            return {"refused": f"the lease has {remaining_s:.3f} s left"}
        lease.claimed = True
        return {"terms": lease.terms, "remaining_s": remaining_s}

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._visits.add(task)
            task.add_done_callback(self._visits.discard)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            writer.transport.abort()
        except asyncio.CancelledError:
            # Only `stop` cancels visits, and asyncio takes a cancelled one for a fault.
            writer.transport.abort()
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await asyncio.wait_for(reader.readline(), _CLAIM_WAIT_S))
        lease_id = request.get("lease_id") if isinstance(request, dict) else None
        if not isinstance(lease_id, str):
            raise ValueError("a claim names a lease")
        answer = self._grant(lease_id, asyncio.get_running_loop().time())
        if "terms" not in answer:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
            return
        confirmed = False
        try:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
            # A claimant that cannot be heard of any more must not be waited for longer than its lease.
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + answer["remaining_s"]):
                confirmed = await reader.readline() == _PULLED
        finally:
            if not confirmed and lease_id in self._leases:
                self.close(lease_id)
                await asyncio.shield(self._release(lease_id))


class Claim:
    """The claimant's side of a granted lease."""

    def __init__(self, terms: Mapping[str, Any], deadline_s: float, writer: asyncio.StreamWriter) -> None:
        self.terms = terms
        self.deadline_s = deadline_s
        """End of the lease, on this host's monotonic clock."""
        self._writer = writer

    def confirm(self) -> None:
        """The KV cache was read; the producer learns so over NIXL."""
        with contextlib.suppress(OSError):
            self._writer.write(_PULLED)
        self._writer.close()

    def give_back(self) -> None:
        """The KV cache is not, or no longer, being read for any use."""
        self._writer.close()


async def claim(host: str, port: int, lease_id: str, timeout_s: float) -> Claim:
    """Claim a lease from its producer.

    Raises:
        ClaimRefusedError: no grant within `timeout_s`.
    """
    asked_at_s = asyncio.get_running_loop().time()
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, limit=_LINE_LIMIT)
            writer.write(json.dumps({"lease_id": lease_id}).encode() + b"\n")
            answer = json.loads(await reader.readline())
        if not isinstance(answer, dict):
            raise ValueError("not an answer to a claim")
        if "refused" in answer:
            raise ClaimRefusedError(str(answer["refused"]))
        # Counted from before the question: the time it took can only shorten the lease.
        return Claim(answer["terms"], asked_at_s + float(answer["remaining_s"]), writer)
    except TimeoutError as error:
        reason: Exception = ClaimRefusedError(f"the producer did not answer within {timeout_s} s")
        reason.__cause__ = error
    except ClaimRefusedError as error:
        reason = error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = ClaimRefusedError(f"the producer cannot be asked: {error}")
        reason.__cause__ = error
    if writer is not None:
        writer.close()
    raise reason
