"""The seam below which bytes move: what a backend tells the KV port of its two ends, and nothing that decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from services.engine.kv.handle import KvHandle
from services.engine.kv.usability import KvTerms

OfferT_contra = TypeVar("OfferT_contra", contravariant=True)
TermsT = TypeVar("TermsT", bound=KvTerms)
TermsT_co = TypeVar("TermsT_co", bound=KvTerms, covariant=True)


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A claimant's question for one lease."""

    lease_id: str
    secret: str = field(repr=False)
    """Secret that the claimant shows for it."""
    engine_epoch: str | None = None
    """Start of the exporting engine that the claimant means; None where lease ids say it."""


@dataclass(frozen=True, slots=True)
class Grant(Generic[TermsT_co]):
    """An exporter's answer to the claimant that may read."""

    terms: TermsT_co
    remaining_s: float = math.inf
    """Seconds that the lease has left in the exporter's eyes; infinite where only the handle says."""


class ClaimRefusedError(Exception):
    """A KV cache cannot be claimed; the message says why, and that it has to be computed again."""


class KvExporter(Protocol[OfferT_contra]):
    """The end of a backend that has computed a KV cache, which it calls an offer.

    Exporter and claimant speak over one TCP connection for each claim, in lines that end with a newline:

        claimant  the claim
        exporter  the grant, or a refusal
        exporter  whatever `send` returns when all bytes are there; nothing where the claimant sees that by itself
        claimant  the confirmation

    The end of the connection before the confirmation ends the claim.
    """

    @property
    def one_sided(self) -> bool:
        """Whether a claimant reads memory without the exporter's help.

        Such a read can be neither refused nor stopped, and the exporting engine learns over the fabric that it has
        ended. A backend that sends the bytes itself can stop, and offer them again to somebody else.
        """
        ...

    def parse_claim(self, line: bytes) -> ClaimRequest:
        """
        Raises:
            ValueError: the line is no claim.
        """
        ...

    def grant(self, offer: OfferT_contra, remaining_s: float) -> bytes:
        """Return the line that tells a claimant how to get the bytes.

        Args:
            remaining_s: seconds that the lease has left.
        """
        ...

    def refuse(self, reason: str) -> bytes:
        """Return the line that tells a claimant that it gets nothing, or no more."""
        ...

    async def send(self, offer: OfferT_contra) -> bytes:
        """Move the bytes, unless the claimant reads them by itself.

        Returns:
            The line that tells the claimant that everything is there; empty if none does.
        """
        ...

    def is_confirmation(self, line: bytes) -> bool:
        """Return whether the claimant says that it has everything."""
        ...


class KvPuller(Protocol[TermsT]):
    """The end of a backend that wants a KV cache."""

    answer_timeout_s: float
    """Seconds within which an exporter must be reached and must have answered a claim."""
    max_answer_bytes: int
    """Length of the longest line that an exporter may send."""

    def claim(self, handle: KvHandle) -> bytes:
        """Return the line that asks for a lease.

        Raises:
            ValueError: the handle cannot be asked for.
        """
        ...

    def parse_answer(self, line: bytes) -> Grant[TermsT]:
        """
        Raises:
            ClaimRefusedError: the exporter does not grant the lease.
            ValueError: the line is no answer to a claim.
        """
        ...

    @property
    def confirmation(self) -> bytes:
        """The line that tells an exporter that everything is here."""
        ...

    def fault(self, terms: TermsT, handle: KvHandle) -> str:
        """Return what only this backend finds wrong with a grant; empty if nothing."""
        ...

    def digest(self, token_ids: Sequence[int]) -> str:
        """Return what `KvTerms.prefix_digest` is for these tokens."""
        ...

    def least_transfer_s(self, kv_bytes: int) -> float:
        """Return the seconds that a transfer takes at least; 0 if nothing is known of the fabric."""
        ...
