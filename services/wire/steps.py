"""Conversion of engine steps: what a step computed, and its output for each request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from services.engine.kv.handle import KvPull, LeaseOutcome
from services.engine.protocol import EngineStep, FinishReason, RequestOutput, RequestTimings, Scheduling
from services.model.request_limits import MAX_LOGPROBS
from services.slo.performance import StepShape
from services.wire.description import load_to_wire
from services.wire.error import MAX_FIGURE, WireError, figures
from services.wire.fields import WireEnum
from services.wire.kv import kv_handle_from_wire, kv_handle_to_wire
from services.wire.sampling import logprobs_from_wire, logprobs_to_wire
from slos_serve.v1 import inference_pb2, sampling_pb2, worker_pb2

_FINISH_REASONS: WireEnum[FinishReason | None, sampling_pb2.FinishReason.ValueType] = WireEnum(
    "finish_reason",
    "finish reason",
    {
        None: sampling_pb2.FINISH_REASON_UNSPECIFIED,
        FinishReason.STOP: sampling_pb2.FINISH_REASON_STOP,
        FinishReason.LENGTH: sampling_pb2.FINISH_REASON_LENGTH,
        FinishReason.ABORT: sampling_pb2.FINISH_REASON_ABORT,
        FinishReason.ERROR: sampling_pb2.FINISH_REASON_ERROR,
    },
)
_OUTCOMES = WireEnum(
    "outcome",
    "lease outcome",
    {
        LeaseOutcome.PULLED: worker_pb2.LEASE_OUTCOME_PULLED,
        LeaseOutcome.RELEASED: worker_pb2.LEASE_OUTCOME_RELEASED,
        LeaseOutcome.EXPIRED: worker_pb2.LEASE_OUTCOME_EXPIRED,
    },
)


def finish_reason_to_wire(reason: FinishReason | None) -> sampling_pb2.FinishReason.ValueType:
    return _FINISH_REASONS.to_wire(reason)


def finish_reason_from_wire(value: sampling_pb2.FinishReason.ValueType) -> FinishReason | None:
    """Read a finish reason; None while the request goes on.

    Raises:
        WireError: this version does not know the reason.
    """
    return _FINISH_REASONS.from_wire(value)


def lease_outcome_to_wire(outcome: LeaseOutcome) -> worker_pb2.LeaseOutcome.ValueType:
    return _OUTCOMES.to_wire(outcome)


def lease_outcome_from_wire(value: worker_pb2.LeaseOutcome.ValueType) -> LeaseOutcome:
    """Read the outcome of a KV lease.

    Raises:
        WireError: this version does not know the outcome.
    """
    return _OUTCOMES.from_wire(value)


def shape_to_wire(shape: StepShape) -> worker_pb2.StepShape:
    return worker_pb2.StepShape(**asdict(shape))


def duration_from_wire(report: worker_pb2.StepReport) -> float:
    """Read how long a step took. Seconds.

    Raises:
        WireError: it is negative or no number, or the time of the report is none.
    """
    if not -MAX_FIGURE <= report.made_at_s <= MAX_FIGURE:  # NaN is not within any bounds
        raise WireError("step.made_at_s", f"must be a time on some clock; got {report.made_at_s}")
    return float(figures("step", report, ("duration_s",))["duration_s"])


def shape_from_wire(message: worker_pb2.StepShape) -> StepShape:
    """Read what a step computed.

    Raises:
        WireError: a figure is negative or no number.
    """
    return StepShape(**figures("step.shape", message, StepShape.__dataclass_fields__))


def scheduling_from_wire(message: worker_pb2.Scheduling) -> Scheduling:
    """Read what the scheduler of a step reports.

    Raises:
        WireError: a figure is negative or no number.
    """
    return Scheduling(**figures("step.scheduling", message, Scheduling.__dataclass_fields__))


def step_to_wire(step: EngineStep, outputs: Iterable[worker_pb2.RequestOutput] = ()) -> worker_pb2.StepReport:
    """Build the report of an engine step.

    Args:
        outputs: outputs under the client's request ids; the step's own carry the engine's.
    """
    return worker_pb2.StepReport(
        step=step.step,
        duration_s=step.duration_s,
        shape=shape_to_wire(step.shape),
        outputs=outputs,
        load=load_to_wire(step.load),
        scheduling=worker_pb2.Scheduling(**asdict(step.scheduling)),
    )


def _timings_to_wire(timings: RequestTimings) -> worker_pb2.RequestTimings:
    pull = timings.kv_pull
    return worker_pb2.RequestTimings(
        wait_s=timings.wait_s,
        run_s=timings.run_s,
        cached_tokens=timings.cached_tokens,
        kv_pull=None
        if pull is None
        else inference_pb2.KvPull(bytes=pull.kv_bytes, transfer_s=pull.transfer_s, wait_s=timings.wait_s),
        kv_recompute_reason=timings.kv_recompute_reason,
    )


def _timings_from_wire(message: worker_pb2.RequestTimings) -> RequestTimings:
    pull = KvPull(message.kv_pull.bytes, message.kv_pull.transfer_s) if message.HasField("kv_pull") else None
    return RequestTimings(message.wait_s, message.run_s, message.cached_tokens, pull, message.kv_recompute_reason)


MOST_OUTPUTS = 4096
"""Outputs of one report at most, if its worker runs fewer requests at once: one for each request of a step. Looking at
each takes microseconds, in which no stream of the router goes on."""
MOST_LOGPROBS = MAX_LOGPROBS + 1
"""Log probabilities of one token: those that a client may ask for, and that of the token itself."""


def check_outputs(report: worker_pb2.StepReport, max_running_requests: int) -> None:
    """Check how many outputs a report has.

    Args:
        max_running_requests: requests that the worker runs at once, as it says.

    Raises:
        WireError: there are more than any step can have.
    """
    most = max(MOST_OUTPUTS, min(max_running_requests, 16 * MOST_OUTPUTS))
    if len(report.outputs) > most:
        raise WireError("step.outputs", f"at most {most}; got {len(report.outputs)}")


def check_output(message: worker_pb2.RequestOutput, vocabulary_size: int) -> None:
    """Check the numbers of an output that a router uses as they are.

    Args:
        vocabulary_size: number of tokens that the worker's model knows.

    Raises:
        WireError: a number is out of range.
    """
    if message.prefilled_tokens < 0:
        raise WireError("output.prefilled_tokens", f"must not be negative; got {message.prefilled_tokens}")
    for token_id in message.token_ids:
        if not 0 <= token_id < vocabulary_size:
            raise WireError("output.token_ids", f"{token_id} is not in the vocabulary")
    if len(message.logprobs) > len(message.token_ids):
        raise WireError("output.logprobs", f"{len(message.logprobs)} for {len(message.token_ids)} tokens")
    for position in message.logprobs:
        if len(position.entries) > MOST_LOGPROBS:
            raise WireError("output.logprobs", f"at most {MOST_LOGPROBS} of one token; got {len(position.entries)}")
    if message.HasField("timings"):
        figures("output.timings", message.timings, ("wait_s", "run_s", "cached_tokens"))
        if message.timings.HasField("kv_pull"):
            figures("output.timings.kv_pull", message.timings.kv_pull, ("bytes", "transfer_s", "wait_s"))


def output_to_wire(output: RequestOutput, request_id: str, attempt: int) -> worker_pb2.RequestOutput:
    """Build the message for an output of a step.

    Args:
        request_id: the client's request id; the output itself carries the engine's.
    """
    return worker_pb2.RequestOutput(
        request_id=request_id,
        attempt=attempt,
        token_ids=output.token_ids,
        logprobs=logprobs_to_wire(output.logprobs),
        finish_reason=finish_reason_to_wire(output.finish_reason),
        stop_token_id=output.stop_token_id,
        kv=None if output.kv is None else kv_handle_to_wire(output.kv),
        timings=None if output.timings is None else _timings_to_wire(output.timings),
        prefilled_tokens=output.prefilled_tokens,
    )


def output_from_wire(message: worker_pb2.RequestOutput) -> RequestOutput:
    """Read an output, under the client's request id; the attempt is left in the message.

    Raises:
        WireError: a field holds what no conforming worker sends.
    """
    return RequestOutput(
        request_id=message.request_id,
        prefilled_tokens=message.prefilled_tokens,
        token_ids=tuple(message.token_ids),
        logprobs=logprobs_from_wire(message.logprobs),
        finish_reason=finish_reason_from_wire(message.finish_reason),
        stop_token_id=message.stop_token_id if message.HasField("stop_token_id") else None,
        kv=kv_handle_from_wire(message.kv) if message.HasField("kv") else None,
        timings=_timings_from_wire(message.timings) if message.HasField("timings") else None,
    )
