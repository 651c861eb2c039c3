"""The last message of a stream: why it ended, what was achieved, and where the time went."""

from __future__ import annotations

from router.requests.live_request import LiveRequest
from router.requests.phases import Phase
from slos_serve.v1 import inference_pb2, sampling_pb2


def finished_message(
    request: LiveRequest, reason: sampling_pb2.FinishReason.ValueType, matched_stop: str, now_s: float
) -> inference_pb2.GenerateResponse:
    """Return the message that ends the stream of a request.

    Args:
        matched_stop: the stop string, or the stop token's id, that ended the output; empty if none did.
        now_s: the moment at which the current phase ends, on the router's clock, in seconds.
    """
    attainment = request.meter.attainment()
    spent_s = request.clock.spent_s(now_s)
    achieved = inference_pb2.Achieved(
        ttft_s=attainment.ttft_s or 0.0,
        worst_gap_s=attainment.worst_gap_s,
        kept=attainment.kept,
        missed=attainment.missed,
    )
    for stage in attainment.stages:
        achieved.stages.add(
            tokens=stage.tokens,
            mean_tpot_s=stage.mean_tpot_s,
            required_tpot_s=stage.required_tpot_s,
            late_tokens=stage.late_tokens,
        )
    finished = inference_pb2.Finished(
        reason=reason,
        matched_stop=matched_stop,
        prompt_tokens=len(request.parsed.prompt),
        completion_tokens=len(request.generated),
        cached_tokens=request.cached_tokens,
        achieved=achieved,
        phases=inference_pb2.Phases(**{f"{phase.value}_s": spent_s[phase] for phase in Phase}),
        restarts=request.restarts,
        kv_recomputes=request.kv_recomputes,
        kv_pull=request.kv_pull,
        trace_id=request.trace_id,
    )
    return inference_pb2.GenerateResponse(finished=finished)
