"""The link over which an engine sends KV caches. It takes time only: nothing is moved."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

ROUNDING_S = 1e-6
"""Seconds before its end at which a transfer has arrived; a clock may not tell less than this apart."""


@dataclass(slots=True, eq=False)
class _Transfer:
    remaining_bytes: float
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Link:
    """A link whose bandwidth is shared equally by the transfers that are on it."""

    def __init__(self, latency_s: float, bytes_per_s: float) -> None:
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._transfers: list[_Transfer] = []
        self._settled_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def alone_s(self, size_bytes: int) -> float:
        """Return the seconds that a transfer takes while no other is on the link."""
        return self._latency_s + size_bytes / self._bytes_per_s

    async def carry(self, size_bytes: int) -> None:
        """Return when so many bytes would have arrived. Cancelling gives the bandwidth to the others."""
        await asyncio.sleep(self._latency_s)
        transfer = _Transfer(size_bytes)
        self._settle()
        self._transfers.append(transfer)
        self._arm()
        try:
            await transfer.done
        finally:
            self._settle()
            if transfer in self._transfers:
                self._transfers.remove(transfer)
            self._arm()

    def _settle(self) -> None:
        """Credit every transfer with its share of the time since the last call."""
        now_s = asyncio.get_running_loop().time()
        if self._transfers:
            carried_bytes = (now_s - self._settled_s) * self._bytes_per_s / len(self._transfers)
            for transfer in self._transfers:
                transfer.remaining_bytes -= carried_bytes
        self._settled_s = now_s

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transfers:
            least_bytes = max(0.0, min(transfer.remaining_bytes for transfer in self._transfers))
            due_s = self._settled_s + least_bytes * len(self._transfers) / self._bytes_per_s
            self._timer = asyncio.get_running_loop().call_at(due_s, self._finish)

    def _finish(self) -> None:
        self._settle()
        rounding_bytes = ROUNDING_S * self._bytes_per_s / max(1, len(self._transfers))
        for transfer in [transfer for transfer in self._transfers if transfer.remaining_bytes <= rounding_bytes]:
            self._transfers.remove(transfer)
            if not transfer.done.done():
                transfer.done.set_result(None)
        self._arm()
