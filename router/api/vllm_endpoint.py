"""vLLM's own gRPC service, `vllm.grpc.engine.VllmEngine`: to its clients the whole cluster looks like one engine.

This endpoint only translates. Its requests become requests of `Inference` and go the same way; their contracts come as
metadata (`services.contract.headers`), which stock clients can set, and the verdict goes back as initial metadata.
Errors are those of `Inference`. A request for what a cluster cannot do as one engine (remote KV parameters, media,
guided decoding) is refused by field, never ignored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

from router.api.parsing import check_lengths
from services.contract.headers import VERDICT_HEADER
from services.contract.rate_limits import rate_limit_headers
from services.identity.principal import Right
from services.model.request_limits import MAX_LOGIT_BIAS, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS
from services.rpc.caller import caller
from services.rpc.errors import InvalidRequestError, UnknownRequestError, abort, call_identity
from slos_serve.v1 import inference_pb2, sampling_pb2

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[Any, Any]
    Generate = Callable[[inference_pb2.GenerateRequest, Context], AsyncIterator[inference_pb2.GenerateResponse]]

log = logging.getLogger(__name__)

SERVICE: str = vllm_engine_pb2.DESCRIPTOR.services_by_name["VllmEngine"].full_name
SERVER_TYPE = "slos-serve"
MAX_ABORTS = 1024
"""Requests that one Abort may name."""

FINISH_REASONS = {
    sampling_pb2.FINISH_REASON_STOP: "stop",
    sampling_pb2.FINISH_REASON_LENGTH: "length",
    sampling_pb2.FINISH_REASON_ABORT: "abort",
    sampling_pb2.FINISH_REASON_ERROR: "error",
}
VERDICTS = {inference_pb2.VERDICT_GUARANTEED: "guaranteed", inference_pb2.VERDICT_BEST_EFFORT: "best_effort"}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Clients of vLLM's protocol may ask for these facts about the model."""

    name: str
    path: str
    vocabulary_size: int
    max_context_tokens: int
    """Tokens of prompt and output together."""
    eos_token_ids: tuple[int, ...]


class VllmEndpoint(vllm_engine_pb2_grpc.VllmEngineServicer):
    """Serves Generate, Abort, HealthCheck, GetModelInfo and GetServerInfo; its other calls answer UNIMPLEMENTED."""

    def __init__(
        self,
        *,
        generate: Generate,
        cancel: Callable[[str, str], Awaitable[None]],
        missing: Callable[[], str],
        running: Callable[[], int],
        model: ServedModel,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Translate between vLLM's protocol and these functions.

        Args:
            generate: `Frontend.Generate`.
            cancel: `Cancelling.on_call`.
            missing: returns why there is no usable worker; empty if there is one.
            running: returns the number of requests in the router at this moment.
        """
        self._generate = generate
        self._cancel = cancel
        self._missing = missing
        self._running = running
        self._model = model
        self._clock = clock
        self._started_s = clock()
        self._last_request_unix_s = 0.0

    async def Generate(  # noqa: N802 - the names are the wire's
        self, request: vllm_engine_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[vllm_engine_pb2.GenerateResponse]:
        self._last_request_unix_s = time.time()
        try:
            params = request.sampling_params
            check_lengths(
                ("tokenized.input_ids", len(request.tokenized.input_ids), self._model.max_context_tokens),
                ("sampling_params.stop", len(params.stop), MAX_STOP_STRINGS),
                ("sampling_params.stop_token_ids", len(params.stop_token_ids), MAX_STOP_TOKEN_IDS),
                ("sampling_params.logit_bias", len(params.logit_bias), MAX_LOGIT_BIAS),
            )
            translated = to_inference(request)
        except InvalidRequestError as error:
            await abort(context, error, request.request_id)
        answer = Translation(request)
        async for response in self._generate(translated, context):
            if response.HasField("admission"):
                verdict = VERDICTS[response.admission.verdict]
                identity = call_identity(response.admission.request_id)
                limits = rate_limit_headers(response.admission.rate_limits).items()
                await context.send_initial_metadata(((VERDICT_HEADER, verdict), *identity, *limits))
            for message in answer.take(response):
                yield message

    async def Abort(  # noqa: N802
        self, request: vllm_engine_pb2.AbortRequest, context: Context
    ) -> vllm_engine_pb2.AbortResponse:
        if len(request.request_ids) > MAX_ABORTS:
            error = InvalidRequestError(f"at most {MAX_ABORTS}; got {len(request.request_ids)}", field="request_ids")
            await abort(context, error)
        ends = (self._cancel(request_id, context.peer()) for request_id in dict.fromkeys(request.request_ids))
        for outcome in await asyncio.gather(*ends, return_exceptions=True):
            match outcome:
                case UnknownRequestError() | InvalidRequestError():
                    # vLLM's own Abort says nothing about ids that it does not have.
                    log.debug("Abort: %s", outcome)
                case BaseException():
                    raise outcome
        return vllm_engine_pb2.AbortResponse()

    async def HealthCheck(  # noqa: N802
        self, request: vllm_engine_pb2.HealthCheckRequest, context: Context
    ) -> vllm_engine_pb2.HealthCheckResponse:
        missing = self._missing()
        return vllm_engine_pb2.HealthCheckResponse(healthy=not missing, message=missing or "Health")

    async def GetModelInfo(  # noqa: N802
        self, request: vllm_engine_pb2.GetModelInfoRequest, context: Context
    ) -> vllm_engine_pb2.GetModelInfoResponse:
        model = self._model
        # The directory of the model says how the router's machine is laid out, which is no client's business.
        path = model.path if caller().may(Right.OBSERVE) else model.name
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=path,
            tokenizer_path=path,
            served_model_name=model.name,
            is_generation=True,
            max_context_length=model.max_context_tokens,
            max_req_input_len=model.max_context_tokens,
            vocab_size=model.vocabulary_size,
            eos_token_ids=model.eos_token_ids,
        )

    async def GetServerInfo(  # noqa: N802
        self, request: vllm_engine_pb2.GetServerInfoRequest, context: Context
    ) -> vllm_engine_pb2.GetServerInfoResponse:
        answer = vllm_engine_pb2.GetServerInfoResponse(server_type=SERVER_TYPE, data_parallel_size=1)
        if caller().may(Right.OBSERVE):
            # How busy the others are, a client must not see.
            answer.active_requests = self._running()
            answer.last_receive_timestamp = self._last_request_unix_s
            answer.uptime_seconds = self._clock() - self._started_s
        return answer


class Translation:
    """Turns the stream of one request into the messages that vLLM's protocol has for it."""

    def __init__(self, request: vllm_engine_pb2.GenerateRequest) -> None:
        self._stream: bool = request.stream
        self._stop = frozenset(request.sampling_params.stop)
        self._candidates: int | None = (
            request.sampling_params.logprobs if request.sampling_params.HasField("logprobs") else None
        )
        self._prompt_tokens = 0
        self._token_ids: list[int] = []
        self._logprobs: list[sampling_pb2.TokenLogprobs] = []

    def take(self, response: inference_pb2.GenerateResponse) -> list[vllm_engine_pb2.GenerateResponse]:
        """Return what a client of vLLM is told of an event: nothing of text that comes without tokens."""
        match response.WhichOneof("event"):
            case "admission":
                self._prompt_tokens = response.admission.prompt_tokens
            case "tokens" if response.tokens.token_ids:
                self._token_ids.extend(response.tokens.token_ids)
                self._logprobs.extend(response.tokens.logprobs)
                return [self._chunk(response.tokens)] if self._stream else []
            case "finished":
                return [self._complete(response.finished)]
        return []

    def _chunk(self, tokens: inference_pb2.TokenChunk) -> vllm_engine_pb2.GenerateResponse:
        chunk = vllm_engine_pb2.GenerateStreamChunk(
            token_ids=tokens.token_ids,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self._token_ids),
        )
        self._put_logprobs(chunk.output_logprobs, tokens.token_ids, tokens.logprobs)
        return vllm_engine_pb2.GenerateResponse(chunk=chunk)

    def _complete(self, finished: inference_pb2.Finished) -> vllm_engine_pb2.GenerateResponse:
        complete = vllm_engine_pb2.GenerateComplete(
            output_ids=self._token_ids,
            finish_reason=FINISH_REASONS[finished.reason],
            prompt_tokens=finished.prompt_tokens,
            completion_tokens=finished.completion_tokens,
            cached_tokens=finished.cached_tokens,
        )
        if not self._stream:
            self._put_logprobs(complete.output_logprobs, self._token_ids, self._logprobs)
        if finished.matched_stop in self._stop:
            complete.matched_stop_str = finished.matched_stop
        elif finished.matched_stop:
            complete.matched_token_id = int(finished.matched_stop)
        return vllm_engine_pb2.GenerateResponse(complete=complete)

    def _put_logprobs(self, target: vllm_engine_pb2.OutputLogProbs, token_ids: Any, positions: Any) -> None:
        if self._candidates is None:
            return
        for token_id, position in zip(token_ids, positions, strict=True):
            target.token_ids.append(token_id)
            target.token_logprobs.append(position.entries[0].logprob)
            top = sorted({entry.token_id: entry for entry in position.entries}.values(), key=lambda entry: entry.rank)
            shown = top[: self._candidates]
            target.top_logprobs.add(
                token_ids=[entry.token_id for entry in shown], values=[entry.logprob for entry in shown]
            )


def to_inference(request: vllm_engine_pb2.GenerateRequest) -> inference_pb2.GenerateRequest:
    """Return a request of vLLM's protocol as a request of ours.

    Raises:
        InvalidRequestError: the request asks for what this cluster does not do.
    """
    for field in ("kv_transfer_params", "kv_transfer_params_json", "mm_inputs", "media_refs", "data_parallel_rank"):
        if request.HasField(field):
            raise InvalidRequestError("is not served here: the cluster moves KV caches itself", field=field)
    if request.extra_mm_inputs:
        raise InvalidRequestError("is not served here", field="extra_mm_inputs")
    message = inference_pb2.GenerateRequest(request_id=request.request_id, sampling=_sampling(request.sampling_params))
    match request.WhichOneof("input"):
        case "text":
            message.text = request.text
        case "tokenized":
            too_large = next((ident for ident in request.tokenized.input_ids if ident >= 2**31), None)
            if too_large is not None:
                raise InvalidRequestError(f"{too_large} is no token id", field="tokenized.input_ids")
            message.token_ids.SetInParent()
            message.token_ids.ids.extend(request.tokenized.input_ids)
    return message


def _sampling(params: vllm_engine_pb2.SamplingParams) -> sampling_pb2.SamplingParams:
    """Return sampling parameters in our protocol.

    A 0 counts as unset where proto3 cannot tell the two apart and 0 means nothing; vLLM's own servicer reads it so too.

    Raises:
        InvalidRequestError: a parameter asks for what this cluster does not do, or fits no field of ours.
    """
    if params.n > 1:
        raise InvalidRequestError("one output a request", field="sampling_params.n")
    if params.WhichOneof("constraint") is not None:
        raise InvalidRequestError("guided decoding is not served here", field="sampling_params.constraint")
    for field in ("prompt_logprobs", "truncate_prompt_tokens"):
        if params.HasField(field):
            raise InvalidRequestError("is not served here", field=f"sampling_params.{field}")
    for field in ("top_k", "max_tokens", "min_tokens"):
        if getattr(params, field) >= 2**31:
            raise InvalidRequestError("is too large", field=f"sampling_params.{field}")
    if any(token_id >= 2**31 for token_id in params.stop_token_ids):
        raise InvalidRequestError("holds no token id", field="sampling_params.stop_token_ids")
    return sampling_pb2.SamplingParams(
        temperature=params.temperature if params.HasField("temperature") else None,
        top_p=params.top_p or None,
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty or None,
        max_tokens=params.max_tokens if params.HasField("max_tokens") else None,
        min_tokens=params.min_tokens,
        seed=params.seed if params.HasField("seed") else None,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        skip_special_tokens=params.skip_special_tokens,
        logit_bias=dict(params.logit_bias),
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        include_stop_str_in_output=params.include_stop_str_in_output,
    )
