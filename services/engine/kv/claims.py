"""The claimant's side of the claim protocol."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Generic

from services.engine.kv.address import ClaimAddress
from services.engine.kv.backend import ClaimRefusedError, KvPuller, TermsT
from services.engine.kv.desk_tls import DeskTls
from services.engine.kv.handle import KvHandle
from services.engine.kv.usability import pull_deadline_s, too_late

TOO_LATE = "the pull would have ended too close to the end of its lease"


class Claim(Generic[TermsT]):
    """A lease that was granted to this engine, and the connection that keeps it so. Times are the event loop's."""

    def __init__(
        self,
        terms: TermsT,
        asked_s: float,
        deadline_s: float,
        confirmation: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.terms = terms
        self.asked_s = asked_s
        """Time at which the exporter was asked."""
        self.deadline_s = deadline_s
        """Time at which the pull must have ended."""
        self._confirmation = confirmation
        self._reader = reader
        self._writer = writer

    async def next_line(self) -> bytes:
        """Wait for what the exporter says after its grant.

        Raises:
            EOFError, OSError, asyncio.LimitOverrunError: the connection ended, or the exporter talks nonsense.
        """
        return await self._reader.readuntil()

    def confirm(self) -> None:
        """Tell the exporter that the KV cache is here and its blocks are no longer needed."""
        with contextlib.suppress(OSError):
            self._writer.write(self._confirmation)
        self._writer.close()

    def give_back(self) -> None:
        """Tell the exporter that the KV cache is not, or no longer, being read for any use."""
        self._writer.close()


async def open_claim(
    puller: KvPuller[TermsT],
    address: ClaimAddress,
    handle: KvHandle,
    deadline_s: float,
    margin_s: float,
    tls: DeskTls | None = None,
) -> Claim[TermsT]:
    """Ask an exporter for a lease.

    Args:
        deadline_s: when the pull must have ended as far as the handle says, on the event loop's clock.
        margin_s: seconds before the end of a lease that are not relied on.
        tls: encrypts the connection and says which certificate the worker in the handle must show; None: it is in the
            clear.

    Raises:
        ClaimRefusedError: there is no grant in time.
    """
    asked_s = asyncio.get_running_loop().time()
    writer: asyncio.StreamWriter | None = None
    claim: Claim[TermsT] | None = None
    try:
        line = puller.claim(handle)
        name = None if tls is None else tls.server_name(handle.worker_id)
        async with asyncio.timeout_at(min(deadline_s, asked_s + puller.answer_timeout_s)):
            reader, writer = await asyncio.open_connection(
                address.host,
                address.port,
                limit=puller.max_answer_bytes,
                ssl=None if tls is None else tls.client(),
                server_hostname=name,
            )
            writer.write(line)
            answer = await reader.readuntil()
        grant = puller.parse_answer(answer)
        # The handle's own duration was stated anew at every hop and holds too.
        end_s = min(deadline_s, pull_deadline_s(asked_s, grant.remaining_s, margin_s))
        claim = Claim(grant.terms, asked_s, end_s, puller.confirmation, reader, writer)
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        late = too_late(deadline_s, asyncio.get_running_loop().time())
        raise ClaimRefusedError(TOO_LATE if late else failure(error, puller.answer_timeout_s)) from error
    finally:
        if claim is None and writer is not None:
            writer.close()
    return claim


def failure(error: Exception, timeout_s: float) -> str:
    """Return in words why an exporter cannot be talked to."""
    match error:
        case TimeoutError():
            return f"the exporter did not answer within {timeout_s:g} s"
        case EOFError():
            return "the exporter closed the connection"
        case ssl.SSLCertVerificationError():
            return f"the exporter's certificate is not accepted: {error.verify_message}"
        case OSError():
            return f"the exporter cannot be reached: {error}"
        case _:
            return f"what passes between puller and exporter makes no sense: {error}"
