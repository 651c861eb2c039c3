"""The events of a stream: one `Admission`, then `Tokens`, then one `Finished`."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from slos_serve.contract import Contract, contract_from_wire
from slos_serve.v1 import inference_pb2, sampling_pb2


class Verdict(enum.Enum):
    """The answer to a contract."""

    REFUSED = inference_pb2.VERDICT_UNSPECIFIED
    """Occurs in a `Quote` only: the request itself would raise."""
    GUARANTEED = inference_pb2.VERDICT_GUARANTEED
    """The contract is promised."""
    BEST_EFFORT = inference_pb2.VERDICT_BEST_EFFORT
    """The request is served in what promised requests leave, without a promise."""


class Binding(enum.Enum):
    """The resource that keeps a contract from being guaranteed."""

    NOTHING = inference_pb2.BINDING_RESOURCE_UNSPECIFIED
    """The contract is guaranteed."""
    PREFILL_TIME = inference_pb2.BINDING_RESOURCE_PREFILL_TIME
    """The prompt cannot be computed in time, or not without making a promised one late."""
    DECODE_RATE = inference_pb2.BINDING_RESOURCE_DECODE_RATE
    """A decode step would be too long for this or for a promised request."""
    KV_MEMORY = inference_pb2.BINDING_RESOURCE_KV_MEMORY
    """The KV cache would not hold the request to its end."""
    NO_WORKER = inference_pb2.BINDING_RESOURCE_NO_WORKER
    """There is no worker."""
    NO_CONTRACT = inference_pb2.BINDING_RESOURCE_NO_CONTRACT
    """Nothing was asked for."""
    PRICE = inference_pb2.BINDING_RESOURCE_PRICE
    """There is too little capacity for all, and others take less of it for their value."""
    FAIR_SHARE = inference_pb2.BINDING_RESOURCE_FAIR_SHARE
    """There is too little capacity for all, and other tenants are below their fair share of it."""


class FinishReason(enum.Enum):
    """The reason why a text ended."""

    STOP = sampling_pb2.FINISH_REASON_STOP
    """A stop string, a stop token or the end-of-sequence token."""
    LENGTH = sampling_pb2.FINISH_REASON_LENGTH
    """`max_tokens`, or the model's context limit."""
    ABORT = sampling_pb2.FINISH_REASON_ABORT
    """The request was cancelled."""
    ERROR = sampling_pb2.FINISH_REASON_ERROR
    """The engine could not go on with it."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The latency of a request that the performance model expects, in seconds."""

    ttft_s: float
    tpot_s: float
    """The smallest TPOT that every token is expected to keep, hand-over included."""
    ttft_bound_s: float
    """Bound that the cluster expects to hold with its configured coverage; guarantees are given against it."""
    tpot_bound_s: float


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What the tenant of a request may still use of one of its quotas."""

    quota: str
    """Name of the quota, which is that of its option: `requests_per_s`."""
    limit: float
    """Amount that may be used at once if nothing was used lately."""
    remaining: float
    """Amount that may be used at once now."""
    reset_s: float
    """Seconds until that is the whole limit again, if nothing is used meanwhile."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to the contract, before any token."""

    request_id: str
    verdict: Verdict
    predicted: Prediction
    contract: Contract
    """The contract in force: profile and metadata resolved, slowdowns turned into seconds."""
    model: str
    prompt_tokens: int
    prefill_worker_id: str
    decode_worker_id: str
    reason: str
    """Reason why the contract is not guaranteed, in words; empty if it is."""
    binding: Binding
    earliest_guarantee_s: float | None
    """Seconds until the same contract would be guaranteed; None if it is, or if that cannot be foreseen."""
    emulated: bool
    """Whether an emulated engine makes the tokens up."""
    rate_limits: tuple[RateLimit, ...] = ()
    """What the tenant may still use of each of its quotas that are rates; empty without such quotas."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One candidate at one position. Rank 1 is the likeliest of the vocabulary."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens in the order in which they were generated; never revised, never repeated."""

    index: int
    """Position of the first of them in the output, from 0."""
    token_ids: tuple[int, ...]
    text: str
    """Text that became certain with these tokens. It may be empty, and may come without a token at the end."""
    logprobs: tuple[tuple[TokenLogprob, ...], ...]
    """Candidates for every token, the chosen one first; empty if not asked for."""


@dataclass(frozen=True, slots=True)
class StageAchieved:
    """The latency that one decode stage achieved."""

    tokens: int
    mean_tpot_s: float
    """Mean time per output token: (time of last token - start of stage) / tokens."""
    required_tpot_s: float
    """The smallest constant TPOT that every token of this stage would have kept."""
    late_tokens: int


@dataclass(frozen=True, slots=True)
class Achieved:
    """The latency that the client got, measured at the router."""

    ttft_s: float
    stages: tuple[StageAchieved, ...]
    worst_gap_s: float
    """Longest time between two tokens."""
    kept: bool
    """Whether every target of the contract was met for every token; true without a contract."""
    missed: str
    """The first target missed, in words; empty when kept."""

    @property
    def tpot_s(self) -> float:
        """Return the smallest constant TPOT that every token would have kept; 0 without a second token."""
        return max((stage.required_tpot_s for stage in self.stages), default=0.0)


@dataclass(frozen=True, slots=True)
class Phases:
    """The time that each phase of a request took, in seconds; together they are the life of the request."""

    queue_s: float
    plan_s: float
    prefill_wait_s: float
    prefill_s: float
    handover_s: float
    decode_s: float
    restart_s: float


@dataclass(frozen=True, slots=True)
class KvPull:
    """The pull of the KV cache by the decode worker."""

    kv_bytes: int
    """Bytes of the KV cache."""
    transfer_s: float
    wait_s: float
    """Seconds from the arrival of the request at the decode worker until its engine scheduled it, transfer included."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a stream."""

    reason: FinishReason
    matched_stop: str
    """Stop string that ended the text, or the id of the stop token in decimal."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    achieved: Achieved
    phases: Phases
    restarts: int
    """Times the request was started again because a worker was lost."""
    kv_recomputes: int
    """Times its KV cache could not be pulled and was computed again."""
    kv_pull: KvPull | None
    trace_id: str = ""
    """Id of the trace, in 32 hexadecimal digits: that of the call's trace context, or the router's own."""


Event = Admission | Tokens | Finished


@dataclass(frozen=True, slots=True)
class Completion:
    """The events of a whole stream put together."""

    text: str
    """The whole text."""
    token_ids: tuple[int, ...]
    """Ids of all tokens."""
    logprobs: tuple[tuple[TokenLogprob, ...], ...]
    """Candidates for every token, the chosen one first; empty if not asked for."""
    admission: Admission
    """Answer to the contract."""
    finished: Finished
    """Outcome of the request."""


@dataclass(frozen=True, slots=True)
class Quote:
    """The answer that a request would get, were it sent now."""

    admission: Admission
    """First event that its stream would have; the verdict is `REFUSED` if the request would raise."""
    impossible: bool
    """Whether not even an idle worker could keep the contract."""


def event_from_wire(message: inference_pb2.GenerateResponse) -> Event | None:
    """Return the event in a message; None for a kind of event that this client does not know."""
    match message.WhichOneof("event"):
        case "tokens":
            tokens = message.tokens
            return Tokens(
                tokens.index,
                tuple(tokens.token_ids),
                tokens.text,
                tuple(
                    tuple(TokenLogprob(entry.token_id, entry.logprob, entry.rank) for entry in position.entries)
                    for position in tokens.logprobs
                ),
            )
        case "admission":
            return admission_from_wire(message.admission)
        case "finished":
            return _finished(message.finished)
        case _:
            return None


def quote_from_wire(message: inference_pb2.QuoteResponse) -> Quote:
    """Return the quote in a message."""
    return Quote(admission_from_wire(message.admission), message.impossible)


def admission_from_wire(message: inference_pb2.Admission) -> Admission:
    """Return the answer to a contract that is in a message."""
    predicted = message.predicted
    return Admission(
        request_id=message.request_id,
        verdict=Verdict(message.verdict),
        predicted=Prediction(predicted.ttft_s, predicted.tpot_s, predicted.ttft_bound_s, predicted.tpot_bound_s),
        contract=contract_from_wire(message.contract),
        model=message.model,
        prompt_tokens=message.prompt_tokens,
        prefill_worker_id=message.prefill_worker_id,
        decode_worker_id=message.decode_worker_id,
        reason=message.reason,
        binding=_BINDINGS.get(message.binding, Binding.NOTHING),
        earliest_guarantee_s=message.earliest_guarantee_s if message.HasField("earliest_guarantee_s") else None,
        emulated=message.emulated,
        rate_limits=rate_limits_from_wire(message.rate_limits),
    )


def rate_limits_from_wire(limits: Iterable[inference_pb2.RateLimit]) -> tuple[RateLimit, ...]:
    """Return what may still be used of quotas."""
    return tuple(RateLimit(each.quota, each.limit, each.remaining, each.reset_s) for each in limits)


_BINDINGS: dict[int, Binding] = {binding.value: binding for binding in Binding}


def _finished(message: inference_pb2.Finished) -> Finished:
    achieved, pull = message.achieved, message.kv_pull
    return Finished(
        reason=FinishReason(message.reason),
        matched_stop=message.matched_stop,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        cached_tokens=message.cached_tokens,
        achieved=Achieved(
            ttft_s=achieved.ttft_s,
            stages=tuple(
                StageAchieved(stage.tokens, stage.mean_tpot_s, stage.required_tpot_s, stage.late_tokens)
                for stage in achieved.stages
            ),
            worst_gap_s=achieved.worst_gap_s,
            kept=achieved.kept,
            missed=achieved.missed,
        ),
        phases=phases_from_wire(message.phases),
        restarts=message.restarts,
        kv_recomputes=message.kv_recomputes,
        kv_pull=KvPull(pull.bytes, pull.transfer_s, pull.wait_s) if message.HasField("kv_pull") else None,
        trace_id=message.trace_id,
    )


def phases_from_wire(phases: inference_pb2.Phases) -> Phases:
    """Return the times of phases that are in a message."""
    return Phases(
        phases.queue_s,
        phases.plan_s,
        phases.prefill_wait_s,
        phases.prefill_s,
        phases.handover_s,
        phases.decode_s,
        phases.restart_s,
    )
