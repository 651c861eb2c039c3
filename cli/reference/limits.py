"""The table of the limits on what a client may send."""

from __future__ import annotations

from cli.reference.page import table
from gateway.requests import MAX_COMMAS
from services.config.settings import GatewaySettings, RouterSettings
from services.model import request_limits
from services.slo import contract


def limit_table() -> str:
    """Write every limit on the size of a request, and on the figures in its contract."""
    sizes = [
        ("body of an HTTP request", f"{GatewaySettings().max_body_bytes:,} bytes (`gateway.max_body_bytes`)"),
        ("values in the JSON of a body", f"{MAX_COMMAS:,}"),
        ("gRPC message", f"{RouterSettings().max_message_bytes:,} bytes (`router.max_message_bytes`)"),
        ("messages of a conversation", f"{request_limits.MAX_MESSAGES:,}"),
        ("prompt and output", "the model's context, in tokens, and the KV cache of a worker"),
        (
            "stop strings",
            f"{request_limits.MAX_STOP_STRINGS:,}, of {request_limits.MAX_STOP_STRING_CHARACTERS:,} characters each",
        ),
        ("stop strings together", f"{request_limits.MAX_STOP_CHARACTERS:,} characters"),
        ("stop token ids", f"{request_limits.MAX_STOP_TOKEN_IDS:,}"),
        ("entries of `logit_bias`", f"{request_limits.MAX_LOGIT_BIAS:,}"),
        ("log probabilities of a token", f"{request_limits.MAX_LOGPROBS:,}"),
        ("decode stages of a contract", f"{contract.MAX_STAGES:,}"),
        ("text that ends a stage", f"{contract.MAX_STAGE_END_CHARACTERS:,} characters"),
        ("tenant, application, session", f"{contract.MAX_NAME_CHARACTERS:,} characters each"),
        ("`value`", f"{contract.MIN_VALUE:f} to {contract.MAX_VALUE:,.0f}"),
        ("`max_slowdown`", f"1 to {contract.MAX_SLOWDOWN:,.0f}"),
        ("requests that wait in a router", f"{RouterSettings().max_queued_requests:,} (`router.max_queued_requests`)"),
    ]
    return table(("what", "limit"), sizes)
