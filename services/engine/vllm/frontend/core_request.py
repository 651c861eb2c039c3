"""The requests of EngineCore, made from those of the port."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from services.engine.protocol import EngineFacts, EngineRequest
from services.engine.vllm.frontend.sampling import (
    UnservableRequestError,
    check_request,
    remaining_tokens,
    vllm_arguments,
)
from services.engine.vllm.shared.contracts import CONTRACT_KEY, contract_to_wire

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.input_processor import InputProcessor


def leaves_kv(request: EngineRequest, max_context_tokens: int) -> bool:
    """Return whether a request leaves a KV cache to hand over: an output that ends with its first token needs none."""
    room = max_context_tokens - len(request.token_ids)
    return request.export_kv and remaining_tokens(request) > 1 and room > 1


def core_request(request: EngineRequest, core_id: str, facts: EngineFacts, inputs: InputProcessor) -> EngineCoreRequest:
    """Return a request as EngineCore takes it.

    Raises:
        UnservableRequestError: no engine would take it.
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    check_request(request, facts.vocabulary_size, facts.max_context_tokens)
    export_kv = leaves_kv(request, facts.max_context_tokens)
    params = {"do_remote_decode": True, "do_remote_prefill": False} if export_kv else None
    arguments = vllm_arguments(request, facts.eos_token_ids, params, export_kv)
    arguments["extra_args"][CONTRACT_KEY] = contract_to_wire(request, time.monotonic())
    try:
        sampling = SamplingParams(output_kind=RequestOutputKind.DELTA, **arguments)
        prompt = tokens_input(list(request.token_ids), cache_salt=request.cache_salt or None)
        made: EngineCoreRequest = inputs.process_inputs(core_id, prompt, sampling, ("generate",))
    except (VLLMClientError, ValueError, TypeError) as error:
        raise UnservableRequestError(str(error)) from error
    made.external_req_id = request.request_id
    return made
