"""The emulated backend of the KV port: messages and the time of transfers are real, but the bytes stay where they are.

Each message is one line of JSON:

    puller    {"lease_id", "secret", "engine_epoch"}
    exporter  {"kind": "granted", "tokens", "kv_bytes", "context_digest"}     or {"kind": "gone", "reason"}
    exporter  {"kind": "arrived"}, after the time the bytes take              or {"kind": "gone", "reason"}
    puller    {"kind": "confirmed"}
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from services.engine.emulated.active_request import Export
from services.engine.emulated.link import Link
from services.engine.emulated.tokens import context_digest
from services.engine.kv.address import faults
from services.engine.kv.backend import ClaimRefusedError, ClaimRequest, Grant
from services.engine.kv.claims import TOO_LATE, Claim, failure
from services.engine.kv.handle import KvHandle, KvPull

MessageT = TypeVar("MessageT")

MAX_ANSWER_BYTES = 4096
"""Length of the longest message; all of them hold a few numbers and words."""
ANSWER_TIMEOUT_S = 5.0
"""Seconds for all that takes no transfer. Ample: emulated clusters crowd many engines on few cores."""


class Message(BaseModel):
    """One line of the protocol."""

    # A validation error that quotes its input would tell a secret.
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    def line(self) -> bytes:
        """Return the message as it is sent."""
        return self.model_dump_json().encode() + b"\n"


class PullRequest(Message):
    """The puller claims a lease."""

    lease_id: str = Field(max_length=128)
    secret: str = Field(max_length=128, repr=False)
    engine_epoch: str = Field(max_length=128)


class Granted(Message):
    """The exporter grants the lease and begins to send."""

    kind: Literal["granted"] = "granted"
    tokens: int = Field(ge=1)
    kv_bytes: int = Field(ge=0)
    context_digest: str = Field(max_length=128)

    @property
    def prefix_digest(self) -> str:
        """The digest under the name that `KvTerms` has for it."""
        return self.context_digest


class Gone(Message):
    """The exporter sends nothing, or no more."""

    kind: Literal["gone"] = "gone"
    reason: str


class Arrived(Message):
    """The exporter has sent everything."""

    kind: Literal["arrived"] = "arrived"


class Confirmed(Message):
    """The puller has everything."""

    kind: Literal["confirmed"] = "confirmed"


PULL_REQUEST: TypeAdapter[PullRequest] = TypeAdapter(PullRequest)
CONFIRMED: TypeAdapter[Confirmed] = TypeAdapter(Confirmed)
REPLY: TypeAdapter[Granted | Gone | Arrived] = TypeAdapter(
    Annotated[Granted | Gone | Arrived, Field(discriminator="kind")]
)


class EmulatedKvBackend:
    """Both ends of a transfer over a link that has a latency and a bandwidth; see `KvExporter` and `KvPuller`."""

    one_sided = False
    answer_timeout_s = ANSWER_TIMEOUT_S
    max_answer_bytes = MAX_ANSWER_BYTES
    confirmation = Confirmed().line()

    def __init__(self, link: Link, block_bytes: int) -> None:
        """Make both ends for one engine.

        Args:
            link: the way out of this engine; of others it tells how long a transfer takes at least.
            block_bytes: size of a KV block.
        """
        self._link = link
        self._block_bytes = block_bytes

    def parse_claim(self, line: bytes) -> ClaimRequest:
        """See `KvExporter.parse_claim`."""
        request = _parsed(PULL_REQUEST, line)
        return ClaimRequest(request.lease_id, request.secret, request.engine_epoch)

    def grant(self, offer: Export, remaining_s: float) -> bytes:
        """See `KvExporter.grant`. The time left is the handle's business."""
        kv_bytes = offer.blocks * self._block_bytes
        return Granted(tokens=offer.tokens, kv_bytes=kv_bytes, context_digest=offer.context_digest).line()

    def refuse(self, reason: str) -> bytes:
        """See `KvExporter.refuse`."""
        return Gone(reason=reason).line()

    async def send(self, offer: Export) -> bytes:
        """See `KvExporter.send`. Takes the time that the link needs."""
        await self._link.carry(offer.blocks * self._block_bytes)
        return Arrived().line()

    def is_confirmation(self, line: bytes) -> bool:
        """See `KvExporter.is_confirmation`.

        Raises:
            ValueError: the line is something else.
        """
        return bool(_parsed(CONFIRMED, line))

    def claim(self, handle: KvHandle) -> bytes:
        """See `KvPuller.claim`."""
        return PullRequest(lease_id=handle.lease_id, secret=handle.secret, engine_epoch=handle.engine_epoch).line()

    def parse_answer(self, line: bytes) -> Grant[Granted]:
        """See `KvPuller.parse_answer`."""
        reply = _reply(line)
        if not isinstance(reply, Granted):
            raise ValueError("the exporter spoke out of turn")
        return Grant(reply)

    def fault(self, terms: Granted, handle: KvHandle) -> str:
        """See `KvPuller.fault`."""
        if terms.kv_bytes == handle.kv_bytes:
            return ""
        return f"the lease is for {terms.kv_bytes} bytes, not {handle.kv_bytes} as the handle says"

    def digest(self, token_ids: Sequence[int]) -> str:
        """See `KvPuller.digest`."""
        return context_digest(token_ids)

    def least_transfer_s(self, kv_bytes: int) -> float:
        """See `KvPuller.least_transfer_s`."""
        return self._link.alone_s(kv_bytes)

    async def receive(self, claim: Claim[Granted]) -> KvPull:
        """Wait for the bytes of a claimed KV cache, and end the claim.

        Raises:
            ClaimRefusedError: they did not come in time, or not at all.
        """
        arrived = False
        try:
            async with asyncio.timeout_at(claim.deadline_s):
                reply = _reply(await claim.next_line())
            if not isinstance(reply, Arrived):
                raise ValueError("the exporter spoke out of turn")
            arrived = True
        except TimeoutError as error:
            raise ClaimRefusedError(TOO_LATE) from error
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise ClaimRefusedError(failure(error, ANSWER_TIMEOUT_S)) from error
        finally:
            if arrived:
                claim.confirm()
            else:
                claim.give_back()
        return KvPull(claim.terms.kv_bytes, asyncio.get_running_loop().time() - claim.asked_s)


def _reply(line: bytes) -> Granted | Arrived:
    reply = _parsed(REPLY, line)
    if isinstance(reply, Gone):
        raise ClaimRefusedError(reply.reason)
    return reply


def _parsed(message: TypeAdapter[MessageT], line: bytes) -> MessageT:
    """Return the message in a line.

    Raises:
        ValueError: the line is no such message; what is said of it is one line.
    """
    try:
        return message.validate_json(line)
    except ValidationError as error:
        raise ValueError(faults(error)) from error
