"""The network between workers: when a KV cache that is sent arrives."""

from __future__ import annotations

from services.slo.transfer import TransferModel


class Fabric:
    """A network on which each worker sends one KV cache and receives one at a time, at full bandwidth; others queue."""

    __slots__ = ("_link", "_receives_until_s", "_sends_until_s")

    def __init__(self, link: TransferModel) -> None:
        self._link = link
        self._sends_until_s: dict[str, float] = {}
        self._receives_until_s: dict[str, float] = {}

    def send(self, source: str, target: str, kv_bytes: float, now_s: float) -> float:
        """Start a transfer of `kv_bytes`, or queue it, and return when it arrives, in seconds of virtual time."""
        starts_s = max(now_s, self._sends_until_s.get(source, 0.0), self._receives_until_s.get(target, 0.0))
        free_s = starts_s + kv_bytes / self._link.bytes_per_s
        self._sends_until_s[source] = self._receives_until_s[target] = free_s
        return free_s + self._link.latency_s
