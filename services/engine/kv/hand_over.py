"""One engine's part in handing over KV caches, whichever backend moves the bytes: handles out, claims in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from services.engine.kv.address import ClaimAddress
from services.engine.kv.backend import ClaimRefusedError, KvExporter, KvPuller, TermsT
from services.engine.kv.claim_server import ClaimServer
from services.engine.kv.claims import Claim, open_claim
from services.engine.kv.compatibility import Compatibility
from services.engine.kv.desk_tls import DeskTls
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.kv.lease_secret import new_secret
from services.engine.kv.leases import Lease, LeaseTable, OfferT
from services.engine.kv.usability import pull_deadline_s, unusable_handle, unusable_terms
from services.slo.kv_blocks import blocks_for


@dataclass(frozen=True, slots=True)
class KvEndpoint:
    """What other engines have to know of one that hands KV caches over."""

    worker_id: str
    engine_epoch: str
    compatibility: Compatibility
    kv_bytes_per_token: int
    lease_margin_s: float
    """Seconds before the end of a lease that are not relied on."""


class KvHandOver(Generic[OfferT, TermsT]):
    """Leases out the KV caches of one engine, and claims those of others. Belongs to one event loop, and its clock."""

    def __init__(
        self,
        endpoint: KvEndpoint,
        exporter: KvExporter[OfferT],
        puller: KvPuller[TermsT],
        free: Callable[[Lease[OfferT], LeaseOutcome], None],
        *,
        expires_leases: bool,
        tls: DeskTls | None = None,
    ) -> None:
        """
        Args:
            free: frees the blocks of a lease that ended here: by a release, at the end of a claim, or at its time.
            expires_leases: False if the engine ends leases at their time by itself and says so by `closed`.
            tls: encrypts claims and says who may make and answer them; None: they are in the clear.
        """
        self._endpoint = endpoint
        self._puller = puller
        self._free = free
        self._expires_leases = expires_leases
        self._leases: LeaseTable[OfferT] = LeaseTable(
            endpoint.engine_epoch, endpoint.lease_margin_s, one_sided=exporter.one_sided
        )
        self._server = ClaimServer(self._leases, exporter, self._claim_ended, tls)
        self._tls = tls
        self.address_json = ""
        """Where leases of this engine are claimed, as its handles say it; empty before `start`."""
        self._expiry: asyncio.TimerHandle | None = None

    async def start(self, host: str) -> None:
        """Begin to answer claims, on a free port of this host.

        Raises:
            OSError: the host is no address of this machine.
        """
        self.address_json = (await self._server.start(host)).model_dump_json()

    async def stop(self) -> None:
        """End every claim, and let no lease expire any more: the engine is going, with all its blocks."""
        self._disarm()
        await self._server.stop()

    def export(self, lease_id: str, offer: OfferT, tokens: int, until_s: float) -> KvHandle:
        """Hold the KV cache of `tokens` tokens for whoever claims it until `until_s`."""
        endpoint, block_tokens = self._endpoint, self._endpoint.compatibility.block_tokens
        secret = new_secret()
        self._leases.open(lease_id, secret, offer, until_s)
        # Most leases last equally long, so that the timer, set for an earlier one, serves as it is.
        if self._expires_leases and (self._expiry is None or until_s < self._expiry.when()):
            self._arm()
        return KvHandle(
            lease_id=lease_id,
            worker_id=endpoint.worker_id,
            engine_epoch=endpoint.engine_epoch,
            lease_remaining_s=max(0.0, until_s - _now_s()),
            tokens=tokens,
            # Whole blocks are moved.
            kv_bytes=blocks_for(tokens, block_tokens) * block_tokens * endpoint.kv_bytes_per_token,
            compatibility=endpoint.compatibility,
            transfer_params_json=self.address_json,
            secret=secret,
        )

    def release(self, lease_id: str) -> None:
        """Give a lease up without a pull. Unknown and closed leases are ignored.

        While an engine reads that nothing can stop, the blocks stay until its claim ends.
        """
        lease = self._leases.release(lease_id)
        if lease is not None:
            self._end(lease, LeaseOutcome.RELEASED)

    def closed(self, lease_id: str, outcome: LeaseOutcome) -> None:
        """Note that the engine has ended a lease by itself and freed its blocks."""
        self._leases.closed(lease_id, outcome)
        self._server.cut_off(lease_id)

    async def claim(self, handle: KvHandle, token_ids: Sequence[int], received_s: float) -> Claim[TermsT]:
        """Claim the KV cache of the beginning of `token_ids`.

        Args:
            received_s: when the handle was received.

        Raises:
            ClaimRefusedError: it must not be pulled, whoever is at fault; the message says why.
        """
        puller, margin_s = self._puller, self._endpoint.lease_margin_s
        unusable = unusable_handle(
            handle,
            self._endpoint.compatibility,
            len(token_ids),
            age_s=_now_s() - received_s,
            needed_s=margin_s + puller.least_transfer_s(handle.kv_bytes),
        )
        if unusable:
            raise ClaimRefusedError(unusable)
        try:
            address = ClaimAddress.from_json(handle.transfer_params_json)
        except ValueError as error:
            raise ClaimRefusedError(f"the handle does not say whom to ask for it: {error}") from error
        deadline_s = pull_deadline_s(received_s, handle.lease_remaining_s, margin_s)
        claim = await open_claim(puller, address, handle, deadline_s, margin_s, self._tls)
        digest = puller.digest(token_ids[: handle.tokens])
        unusable = unusable_terms(claim.terms, handle, digest) or puller.fault(claim.terms, handle)
        if unusable:
            claim.give_back()
            raise ClaimRefusedError(unusable)
        return claim

    def _claim_ended(self, lease: Lease[OfferT], confirmed: bool) -> None:
        outcome = self._leases.end_claim(lease, confirmed=confirmed)
        if outcome is not None:
            self._end(lease, outcome)

    def _end(self, lease: Lease[OfferT], outcome: LeaseOutcome) -> None:
        self._server.cut_off(lease.lease_id)
        self._free(lease, outcome)
        if not len(self._leases):
            self._disarm()

    def _expire(self) -> None:
        self._expiry = None
        for lease in self._leases.expire(_now_s()):
            self._end(lease, LeaseOutcome.EXPIRED)
        self._arm()

    def _arm(self) -> None:
        self._disarm()
        due_s = self._leases.next_expiry_s()
        if due_s is not None:
            self._expiry = asyncio.get_running_loop().call_at(due_s, self._expire)

    def _disarm(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None


def _now_s() -> float:
    return asyncio.get_running_loop().time()
