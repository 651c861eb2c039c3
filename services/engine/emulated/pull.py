"""Pulling a KV cache from another engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from services.engine.emulated.link import Link
from services.engine.emulated.tokens import context_digest
from services.engine.emulated.transfer import (
    MAX_MESSAGE_BYTES,
    REPLIES,
    REPLY_TIMEOUT_S,
    Arrived,
    Confirmed,
    Gone,
    Granted,
    PullRequest,
    TransferParams,
    send,
)
from services.engine.kv.compatibility import Compatibility, mismatches
from services.engine.kv.handle import KvHandle, KvPull


class PullFailedError(Exception):
    """A KV cache was not brought over; the message says why."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A KV cache that is here."""

    tokens: int
    pull: KvPull


class Puller:
    """Brings over what fits this engine and arrives before its lease runs out."""

    def __init__(self, ours: Compatibility, link: Link, lease_margin_s: float) -> None:
        """`link` tells how long a transfer takes at least."""
        self._ours = ours
        self._link = link
        self._lease_margin_s = lease_margin_s

    async def pull(self, handle: KvHandle, token_ids: Sequence[int], age_s: float) -> Pulled:
        """Pull the KV cache of the beginning of `token_ids`, with a handle that was received `age_s` ago.

        Raises:
            PullFailedError: on every failure, whoever is at fault.
        """
        started_s = asyncio.get_running_loop().time()
        available_s = handle.lease_remaining_s - self._lease_margin_s - age_s
        params = self._accept(handle, token_ids, available_s)
        deadline = asyncio.timeout(available_s)
        try:
            async with deadline:
                granted = await self._transfer(params, handle, token_ids)
        except TimeoutError as error:
            if deadline.expired():
                raise PullFailedError("the pull would have ended too close to the end of its lease") from error
            raise PullFailedError(f"the exporter did not answer within {REPLY_TIMEOUT_S:g} s") from error
        except ValidationError as error:
            raise PullFailedError(f"the exporter's answer makes no sense: {_summary(error)}") from error
        except EOFError as error:
            raise PullFailedError("the exporter closed the connection") from error
        except (OSError, ValueError, asyncio.LimitOverrunError) as error:
            raise PullFailedError(f"the connection to the exporter failed: {error}") from error
        transfer_s = asyncio.get_running_loop().time() - started_s
        return Pulled(granted.tokens, KvPull(kv_bytes=granted.kv_bytes, transfer_s=transfer_s))

    def _accept(self, handle: KvHandle, token_ids: Sequence[int], available_s: float) -> TransferParams:
        differences = mismatches(self._ours, handle.compatibility)
        if differences:
            raise PullFailedError(f"the engines do not match: {', '.join(differences)}")
        if not 1 <= handle.tokens <= len(token_ids):
            raise PullFailedError(f"the handle covers {handle.tokens} of {len(token_ids)} tokens")
        if handle.kv_bytes < 0:
            raise PullFailedError(f"the handle is for {handle.kv_bytes} bytes")
        if not math.isfinite(available_s) or available_s <= self._link.alone_s(handle.kv_bytes):
            raise PullFailedError(f"the lease leaves {max(0.0, available_s):.3f} s for the pull")
        try:
            return TransferParams.model_validate_json(handle.transfer_params_json)
        except ValidationError as error:
            raise PullFailedError(f"transfer parameters make no sense: {_summary(error)}") from error

    async def _transfer(self, params: TransferParams, handle: KvHandle, token_ids: Sequence[int]) -> Granted:
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(params.host, params.port, limit=MAX_MESSAGE_BYTES)
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                await send(writer, PullRequest(lease_id=handle.lease_id, engine_epoch=handle.engine_epoch))
                granted = await _reply(reader)
            if not isinstance(granted, Granted):
                raise PullFailedError("the exporter answered out of turn")
            if (granted.tokens, granted.kv_bytes) != (handle.tokens, handle.kv_bytes):
                raise PullFailedError("the lease is not the one that the handle describes")
            if granted.context_digest != context_digest(token_ids[: granted.tokens]):
                raise PullFailedError("the lease holds the KV cache of other tokens")
            if not isinstance(await _reply(reader), Arrived):
                raise PullFailedError("the exporter answered out of turn")
            await send(writer, Confirmed())
            return granted
        finally:
            writer.close()


async def _reply(reader: asyncio.StreamReader) -> Granted | Arrived:
    reply = REPLIES.validate_json(await reader.readuntil())
    if isinstance(reply, Gone):
        raise PullFailedError(reply.reason)
    return reply


def _summary(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}".strip(": ") for part in error.errors())
