"""One request on its way through the cluster, as the router that took it knows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from router.api.parsing import ParsedRequest
from router.requests.output_buffer import OutputBuffer
from router.requests.phases import Phase, PhaseClock
from router.requests.planning_log import PlanningLog
from services.engine.kv.handle import KvHandle
from services.model.stop_strings import StopStrings
from services.model.tokenizer import TextStream
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract
from services.slo.latency_forecast import Placement
from services.state.journal import RequestState
from services.telemetry.traces import Trace
from slos_serve.v1 import inference_pb2, sampling_pb2, worker_pb2


@dataclass(slots=True)
class Lease:
    """A KV cache held for this request on a prefill worker."""

    handle: KvHandle
    received_s: float
    """When the handle came; its validity runs from there."""

    def remaining_s(self, now_s: float) -> float:
        return self.handle.lease_remaining_s - (now_s - self.received_s)


@dataclass(slots=True)
class LiveRequest:
    """A request and everything that happened to it. Only the dispatcher changes it."""

    parsed: ParsedRequest
    contract: Contract
    """Resolved: slowdowns are seconds."""
    meter: AttainmentMeter
    clock: PhaseClock
    text: TextStream
    stops: StopStrings
    placement: Placement
    planning: PlanningLog = field(default_factory=PlanningLog)
    trace: Trace | None = None
    prefill_worker_id: str = ""
    """The worker that has the prefill, or held the KV cache last; empty while queued."""
    decode_worker_id: str = ""
    """The worker that decodes; planned while the request is queued or in prefill."""
    guaranteed: bool = False
    """The client was told so."""
    promised: Placement = field(init=False)
    """As foretold at admission; `placement` changes."""
    planned: bool = False
    """There is room for it in the plan: guaranteed, or best effort that has waited so long that it was given room."""
    prefilled_tokens: int = 0
    """Of its context: thought to be cached by the worker it was given to, then as that reports."""
    state: RequestState = RequestState.QUEUED
    attempt: int = 0
    generated: list[int] = field(default_factory=list)
    lease: Lease | None = None
    due_s: float = 0.0
    """Rank in the queue."""
    submitted_s: float = 0.0
    """When a worker was given it last."""
    believed_cached_tokens: int = 0
    """Of its prompt, thought to be in the cache of the worker it was given to."""
    restarts: int = 0
    kv_recomputes: int = 0
    cached_tokens: int = 0
    kv_pull: inference_pb2.KvPull | None = None
    marker_tail: str = ""
    """The end of the text so far, as long as a stage's end marker may reach back."""
    delivery: OutputBuffer = field(default_factory=OutputBuffer)

    def __post_init__(self) -> None:
        self.promised = self.placement

    @property
    def request_id(self) -> str:
        return self.parsed.request_id

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty without a trace."""
        return "" if self.trace is None else self.trace.trace_id

    @property
    def context_tokens(self) -> int:
        return len(self.parsed.prompt) + len(self.generated)

    @property
    def worker_id(self) -> str:
        """The worker that is at work on it; empty while queued or ended."""
        if self.state is RequestState.DECODING or self.state is RequestState.HANDOVER:
            return self.decode_worker_id
        return self.prefill_worker_id if self.state is RequestState.PREFILLING else ""

    def take_tokens(self, output: worker_pb2.RequestOutput, now_s: float) -> str:
        """Add tokens to the output and send them on.

        Returns:
            The stop string that ended the text; empty if none did.
        """
        token_ids = list(output.token_ids)
        if not token_ids:
            return ""
        text, matched = "", ""
        index = len(self.generated)
        if self.parsed.stop or len(self.contract.decode) > 1:
            text, matched = self._look_into(token_ids, now_s)
            token_ids = self.generated[index:]
        else:
            self.generated += token_ids
            self.meter.tokens(len(token_ids), now_s)
            for token_id in token_ids:
                text += self.text.feed(token_id)
        logprobs = () if self.parsed.sampling.logprobs is None else output.logprobs[: len(token_ids)]
        self.delivery.put(index, token_ids, text, logprobs)
        return matched

    def _look_into(self, token_ids: Iterable[int], now_s: float) -> tuple[str, str]:
        """Take tokens one by one: what their text says may end a stage or the request.

        Returns:
            The text, and the stop string that ended it; tokens after that are not taken.
        """
        text = ""
        for token_id in token_ids:
            self.generated.append(token_id)
            self.meter.tokens(1, now_s)
            piece = self.text.feed(token_id)
            if self.meter.stage_marker:
                self._follow_stages(piece)
            checked = self.stops.feed(piece, armed=len(self.generated) >= self.parsed.sampling.min_tokens)
            text += checked.text
            if checked.matched:
                return text, checked.matched
        return text, ""

    def flush_text(self) -> str:
        """Send what was held back of the text; the request ends. Returns the stop string that it turned out to hold."""
        checked = self.stops.feed(self.text.flush())
        rest = checked.text if checked.matched else checked.text + self.stops.flush()
        if rest:
            self.delivery.put(len(self.generated), (), rest)
        return checked.matched

    def finished_message(
        self, reason: sampling_pb2.FinishReason.ValueType, matched_stop: str, now_s: float
    ) -> inference_pb2.GenerateResponse:
        attainment = self.meter.attainment()
        spent_s = self.clock.spent_s(now_s)
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
            prompt_tokens=len(self.parsed.prompt),
            completion_tokens=len(self.generated),
            cached_tokens=self.cached_tokens,
            achieved=achieved,
            phases=inference_pb2.Phases(**{f"{phase.value}_s": spent_s[phase] for phase in Phase}),
            restarts=self.restarts,
            kv_recomputes=self.kv_recomputes,
            kv_pull=self.kv_pull,
            trace_id=self.trace_id,
        )
        return inference_pb2.GenerateResponse(finished=finished)

    def replace_placement(self, placement: Placement) -> None:
        """Where it goes next; the verdict given to the client stands."""
        self.placement = placement
        self.decode_worker_id = placement.decode_worker_id

    def _follow_stages(self, piece: str) -> None:
        marker = self.meter.stage_marker
        seen = self.marker_tail + piece
        if marker in seen:
            self.meter.end_stage()
            self.marker_tail = ""
        else:
            self.marker_tail = seen[-(len(marker) - 1) :] if len(marker) > 1 else ""
