"""The NIXL backend of the KV port: how engines claim a KV cache of each other, and what vLLM is told to move it.

A read over NIXL is one-sided: the exporter cannot refuse it, and blocks freed meanwhile are read without an error.
That is why a lease has to be claimed before, over a connection that lasts until nobody reads any more. Each message is
one line:

    claimant  {"lease_id", "secret"}
    exporter  {"terms", "remaining_s"}     or {"refused"}
    claimant  pulled
"""

from __future__ import annotations

import importlib.metadata
import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from services.engine.kv.address import ClaimAddress
from services.engine.kv.backend import ClaimRefusedError, ClaimRequest, Grant
from services.engine.kv.handle import KvHandle
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.shared.nixl_terms import LEASE_DEADLINE_KEY, MalformedTransferError, NixlTerms, prefix_digest
from services.slo.kv_blocks import blocks_for

KV_LAYOUT = "LBHNC"
"""Order of dimensions that vLLM's NIXL connector asks of the attention backend: layers, blocks, heads, tokens,
channels."""
MAX_LEASE_S = 86_400.0
"""Seconds of a lease at most that are believed; leases last for seconds to minutes."""
LOOPBACK_DEVICE = "lo"
"""Name of Linux's loopback device."""
PULLED = b"pulled\n"
"""Line with which a claimant confirms."""


@dataclass(frozen=True, slots=True)
class NixlOffer:
    """A KV cache that EngineCore holds under a lease."""

    params: Mapping[str, Any]
    """Transfer parameters as the exporting vLLM has made them."""
    tokens: int
    """Number of tokens whose KV is held."""
    until_s: float
    """Time at which EngineCore frees it, on this host's monotonic clock."""

    @classmethod
    def from_vllm(cls, params: Mapping[str, Any]) -> NixlOffer:
        """Return the offer in the parameters that an exporting vLLM has made.

        Raises:
            MalformedTransferError: vLLM's parameters are not as expected.
        """
        return cls(params, NixlTerms.from_exporter(params).tokens, float(params[LEASE_DEADLINE_KEY]))


class NixlBackend:
    """Both ends of a transfer in which EngineCore does the reading; see `KvExporter` and `KvPuller`."""

    one_sided = True
    answer_timeout_s = 2.0
    """Seconds that an answer may take; a request that waits longer loses less by computing its prompt."""
    max_answer_bytes = 4 * 2**20
    """Number of bytes that hold the ids of more than 500,000 blocks."""
    confirmation = PULLED

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens

    def parse_claim(self, line: bytes) -> ClaimRequest:
        """See `KvExporter.parse_claim`. Lease ids are made of the engine's epoch and need no other fence."""
        request = _mapping(line)
        lease_id, secret = request.get("lease_id"), request.get("secret")
        if not isinstance(lease_id, str) or not isinstance(secret, str):
            raise ValueError("a claim names a lease and shows its secret")
        return ClaimRequest(lease_id, secret)

    def grant(self, offer: NixlOffer, remaining_s: float) -> bytes:
        """See `KvExporter.grant`."""
        return _line({"terms": offer.params, "remaining_s": remaining_s})

    def refuse(self, reason: str) -> bytes:
        """See `KvExporter.refuse`."""
        return _line({"refused": reason})

    async def send(self, offer: NixlOffer) -> bytes:
        """See `KvExporter.send`. The claimant's EngineCore reads by itself."""
        return b""

    def is_confirmation(self, line: bytes) -> bool:
        """See `KvExporter.is_confirmation`."""
        return line == PULLED

    def claim(self, handle: KvHandle) -> bytes:
        """See `KvPuller.claim`."""
        return _line({"lease_id": handle.lease_id, "secret": handle.secret})

    def parse_answer(self, line: bytes) -> Grant[NixlTerms]:
        """See `KvPuller.parse_answer`."""
        answer = _mapping(line)
        if "refused" in answer:
            raise ClaimRefusedError(str(answer["refused"]))
        params, remaining_s = answer.get("terms"), answer.get("remaining_s")
        if not isinstance(params, Mapping) or not isinstance(remaining_s, int | float) or isinstance(remaining_s, bool):
            raise MalformedTransferError("a grant has terms and a duration")
        if not 0 <= remaining_s <= MAX_LEASE_S:
            raise MalformedTransferError("a lease lasts up to a day")
        return Grant(NixlTerms.from_exporter(params), float(remaining_s))

    def fault(self, terms: NixlTerms, handle: KvHandle) -> str:
        """See `KvPuller.fault`. A block list that is too short kills the EngineCore that reads it.

        EngineCore shakes hands with the engine and the host that a grant names, so that they must be those asked.
        """
        asked = (handle.engine_epoch, ClaimAddress.from_json(handle.transfer_params_json).host)
        if (terms.engine_id, terms.host) != asked:
            return "the grant names another engine or host than the one that was asked"
        blocks = blocks_for(terms.tokens, self._block_tokens)
        if len(terms.block_ids) == blocks:
            return ""
        return f"{len(terms.block_ids)} KV blocks offered for {terms.tokens} tokens, which take {blocks}"

    def digest(self, token_ids: Sequence[int]) -> str:
        """See `KvPuller.digest`."""
        return prefix_digest(token_ids)

    def least_transfer_s(self, kv_bytes: int) -> float:
        """See `KvPuller.least_transfer_s`."""
        return 0.0


def connector_config(config: VllmEngineConfig, engine_epoch: str) -> dict[str, Any]:
    """Return the arguments of vLLM's `KVTransferConfig`."""
    buffer = {} if config.kv_buffer_device == "auto" else {"kv_buffer_device": config.kv_buffer_device}
    return {
        "kv_connector": "FencedNixlConnector",
        "kv_connector_module_path": "services.engine.vllm.core.nixl.connector",
        "kv_role": "kv_both",
        "engine_id": engine_epoch,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"kv_lease_duration": config.kv_lease_s, "nixl_poll_us": config.nixl_poll_us},
        **buffer,
    }


def environment(config: VllmEngineConfig) -> dict[str, str]:
    """Return the environment variables from which NIXL, UCX and vLLM's connector read the rest.

    UCX listens on every network device unless told otherwise, and whoever reaches it with NIXL's metadata reads the KV
    cache: an engine that is to be reached from this host alone keeps to its loopback device, unless the environment
    names another.
    """
    own = {"UCX_NET_DEVICES": os.environ.get("UCX_NET_DEVICES", LOOPBACK_DEVICE)} if _is_loopback(config) else {}
    return {
        **own,
        "NIXL_LOG_LEVEL": "WARN" if config.log_level == "WARNING" else config.log_level,
        "VLLM_NIXL_SIDE_CHANNEL_HOST": config.kv_host,
    }


def _is_loopback(config: VllmEngineConfig) -> bool:
    try:
        return ipaddress.ip_address(config.kv_host).is_loopback
    except ValueError:
        return config.kv_host == "localhost"


def transfer_protocol() -> str:
    """Return name and version of what moves the bytes, in which two engines must agree."""
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import NIXL_CONNECTOR_VERSION

    return f"nixl {importlib.metadata.version('nixl')}, pull {NIXL_CONNECTOR_VERSION}"


def _mapping(line: bytes) -> Mapping[str, Any]:
    """Return the JSON object in a line.

    Raises:
        ValueError: the line is no JSON object, or one that nests without end.
    """
    value = from_json(line, allow_inf_nan=False)
    if not isinstance(value, dict):
        raise ValueError("a message is a JSON object")
    return value


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
