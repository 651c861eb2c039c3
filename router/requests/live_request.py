"""One admitted request on its way through the cluster, as the router that took it knows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from router.requests.held_lease import HeldLease
from router.requests.output_buffer import OutputBuffer
from router.requests.parsed_request import ParsedRequest, request_facts
from router.requests.phases import Phase, PhaseClock
from router.requests.planning_log import PlanningLog
from services.model.stop_strings import StopStrings
from services.model.tokenizer import TextStream
from services.slo.admission import Progress, RequestFacts
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract
from services.slo.latency_forecast import Placement
from services.state.journal_entry import RequestState
from services.telemetry.traces import Trace
from slos_serve.v1 import inference_pb2, worker_pb2

_PROGRESS = {
    RequestState.QUEUED: Progress.QUEUED,
    RequestState.PREFILLING: Progress.PREFILLING,
    RequestState.HANDOVER: Progress.HANDOVER,
}
"""Progress by state; in all others the request is decoding, or was."""


class RequestEndedError(Exception):
    """A request that has ended was to enter another state."""


@dataclass(slots=True)
class LiveRequest:
    """An admitted request and everything that has happened to it.

    Its own methods are the only writers of its fields; the modules of `router/dispatch` call them, and everyone else
    only reads. Two parts of it have other writers: the planner adds notes to `planning`, and whoever answers the
    client empties `output_buffer`. Times are on the router's clock, in seconds.
    """

    parsed: ParsedRequest
    contract: Contract
    """The client's contract, resolved: a slowdown is given in seconds."""
    meter: AttainmentMeter
    clock: PhaseClock
    text: TextStream
    stops: StopStrings
    placement: Placement
    """Where the request goes next; the planner may replace it."""
    planning: PlanningLog = field(default_factory=PlanningLog)
    trace: Trace | None = None
    guaranteed: bool = False
    """True if the client was told that its contract is guaranteed."""
    promised: Placement = field(init=False)
    """The placement that was forecast at admission; it never changes."""
    planned: bool = field(init=False)
    """True while the plan has room for the request: it is guaranteed, or it is best effort that waited so long that its
    prompt was given room.
    """
    prefill_worker_id: str = field(init=False, default="")
    """The worker that was given the prompt last; empty before the first."""
    decode_worker_id: str = field(init=False)
    """The worker that decodes, or will."""
    prefilled_tokens: int = field(init=False, default=0)
    """Number of context tokens computed: at first those that the prefill worker is believed to have cached, then those
    that it reports.
    """
    state: RequestState = field(init=False, default=RequestState.QUEUED)
    attempt: int = field(init=False, default=0)
    """Number of the attempt under way; what workers report about an earlier attempt does not count."""
    generated: list[int] = field(init=False, default_factory=list)
    """The token ids of the output so far."""
    lease: HeldLease | None = field(init=False, default=None)
    """The lease on the KV cache that is to be handed over; None while there is none."""
    rank_s: float = field(init=False)
    """The time by which prompts are ordered, the earliest first, as if each were due then."""
    facts: RequestFacts = field(init=False)
    """What the admission core is told of the request."""
    submitted_s: float = field(init=False, default=0.0)
    """When the request was last submitted to a worker."""
    believed_cached_tokens: int = field(init=False, default=0)
    """Number of prompt tokens that the prefill worker was believed to have cached when it was given the prompt."""
    restarts: int = field(init=False, default=0)
    """Number of failed attempts that count towards the limit of restarts."""
    kv_recomputes: int = field(init=False, default=0)
    """Number of times a decode worker computed the KV cache again instead of pulling it."""
    cached_tokens: int = field(init=False, default=0)
    """Largest number of prompt tokens that a worker reports to have found in its cache."""
    kv_pull: inference_pb2.KvPull | None = field(init=False, default=None)
    """The last transfer of the KV cache, as the decode worker reports it."""
    output_buffer: OutputBuffer = field(init=False, default_factory=OutputBuffer)
    _marker_tail: str = field(init=False, default="")
    """The end of the text so far, as long as the marker that ends a stage may reach back."""

    def __post_init__(self) -> None:
        self.promised = self.placement
        self.planned = self.guaranteed
        self.decode_worker_id = self.placement.decode_worker_id
        self.rank_s = self.placement.due_s
        self.facts = request_facts(self.parsed)

    @property
    def request_id(self) -> str:
        return self.parsed.request_id

    @property
    def trace_id(self) -> str:
        """The id of the trace, 32 hexadecimal digits; empty without a trace."""
        return "" if self.trace is None else self.trace.trace_id

    @property
    def context_tokens(self) -> int:
        """The number of tokens in the prompt and the output so far."""
        return len(self.parsed.prompt) + len(self.generated)

    @property
    def worker_id(self) -> str:
        """The worker that works on the request; empty while it is queued and once it has ended."""
        if self.state is RequestState.DECODING or self.state is RequestState.HANDOVER:
            return self.decode_worker_id
        return self.prefill_worker_id if self.state is RequestState.PREFILLING else ""

    # Read by the admission core: see `TrackedRequest`.

    @property
    def progress(self) -> Progress:
        """How far the request has come, in the admission core's terms."""
        return _PROGRESS.get(self.state, Progress.DECODING)

    @property
    def prompt_worker_id(self) -> str:
        """The worker that computes the prompt, or did; while the request is queued, the one that it waits for."""
        return self.placement.prefill_worker_id if self.state is RequestState.QUEUED else self.prefill_worker_id

    @property
    def generated_tokens(self) -> int:
        return len(self.generated)

    @property
    def next_due_s(self) -> float | None:
        """When the next token is due; None without a target."""
        return self.meter.next_due_s()

    @property
    def tightest_tpot_s(self) -> float | None:
        """The tightest TPOT of the contract from here on; None without a target."""
        return self.meter.tightest_tpot_s()

    # Where it goes.

    def enter(self, state: RequestState) -> None:
        """Enter a state.

        Raises:
            RequestEndedError: the request has ended; it ends once.
        """
        if self.state.final:
            raise RequestEndedError(f"{self.request_id} is {self.state.value}, and was to be {state.value}")
        self.state = state

    def move(self, placement: Placement) -> None:
        """Send the request somewhere else; the verdict that the client was given stands."""
        self.placement = placement
        self.decode_worker_id = placement.decode_worker_id

    def give_room(self, placement: Placement) -> None:
        """Give a queued best-effort prompt the room in the plan that its long wait earned."""
        self.planned = True
        self.rank_s = placement.due_s
        self.move(placement)

    def submit_prompt(self, worker_id: str, cached_tokens: int, now_s: float) -> None:
        """Note that a worker is given the prompt.

        Args:
            cached_tokens: number of prompt tokens that the worker is believed to have cached.
        """
        self.prefill_worker_id = worker_id
        self.prefilled_tokens = self.believed_cached_tokens = cached_tokens
        self.submitted_s = now_s
        if self.restarts == 0:
            self.clock.enter(Phase.PREFILL_WAIT, now_s)

    def submit_decode(self, now_s: float) -> None:
        """Note that the decode worker is given the request, with its KV cache to be pulled."""
        self.submitted_s = now_s

    def hold(self, lease: HeldLease) -> None:
        """Note that a worker holds the KV cache."""
        self.lease = lease

    def drop_lease(self) -> HeldLease | None:
        """Forget the lease, and return it; None if there is none."""
        lease, self.lease = self.lease, None
        return lease

    # What workers report.

    def begin_prefill(self, cached_tokens: int, began_s: float, now_s: float) -> None:
        """Note that the worker began to compute the prompt at `began_s`, with so many prompt tokens in its cache."""
        self.cached_tokens = max(self.cached_tokens, cached_tokens)
        if self.restarts == 0:
            self.clock.entered(Phase.PREFILL, began_s, now_s)

    def advance_prefill(self, tokens: int) -> None:
        """Note that so many context tokens are computed."""
        self.prefilled_tokens = tokens

    def end_prefill(self, now_s: float) -> None:
        """Note that the prompt is computed; best effort loses the room in the plan that was for its prompt."""
        self.clock.enter(Phase.DECODE if self.placement.local else Phase.HANDOVER, now_s)
        self.planned = self.guaranteed

    def begin_decode(self, timings: worker_pb2.RequestTimings, now_s: float) -> None:
        """Note what the decode worker reports with its first output: when it began, and how it got the KV cache."""
        self.cached_tokens = max(self.cached_tokens, timings.cached_tokens)
        self.clock.entered(Phase.DECODE, self.submitted_s + timings.wait_s, now_s)
        if timings.HasField("kv_pull"):
            self.kv_pull = timings.kv_pull
        if timings.kv_recompute_reason:
            self.kv_recomputes += 1

    def count_restart(self) -> None:
        """Count a failed attempt towards the limit of restarts."""
        self.restarts += 1

    def start_again(self, now_s: float) -> None:
        """Begin another attempt from the tokens delivered so far; it is due at once, or when its next token was due."""
        self.attempt += 1
        self.prefilled_tokens = 0
        self.planned = self.guaranteed
        self.clock.enter(Phase.RESTART, now_s)
        next_due_s = self.meter.next_due_s()
        self.rank_s = now_s if next_due_s is None else min(now_s, next_due_s)

    def take_tokens(self, output: worker_pb2.RequestOutput, now_s: float) -> str:
        """Add tokens to the output and put them into the output buffer.

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
            self.meter.note_tokens(len(token_ids), now_s)
            for token_id in token_ids:
                text += self.text.feed(token_id)
        logprobs = () if self.parsed.sampling.logprobs is None else output.logprobs[: len(token_ids)]
        self.output_buffer.put(index, token_ids, text, logprobs)
        return matched

    def complete(self, now_s: float, *, text_complete: bool) -> str:
        """Stop the meter, and deliver what was held back of the text unless the text is complete.

        Returns:
            The stop string that the rest of the text turned out to hold; empty if it holds none.
        """
        self.meter.end(now_s)
        if text_complete:
            return ""
        checked = self.stops.feed(self.text.flush())
        rest = checked.text if checked.matched else checked.text + self.stops.flush()
        if rest:
            self.output_buffer.put(len(self.generated), (), rest)
        return checked.matched

    def _look_into(self, token_ids: Iterable[int], now_s: float) -> tuple[str, str]:
        """Take tokens one by one, because their text may end a stage or the request.

        Returns:
            The text, and the stop string that ended it; tokens after that are not taken.
        """
        text = ""
        for token_id in token_ids:
            self.generated.append(token_id)
            self.meter.note_tokens(1, now_s)
            piece = self.text.feed(token_id)
            if self.meter.stage_marker:
                self._follow_stages(piece)
            checked = self.stops.feed(piece, armed=len(self.generated) >= self.parsed.sampling.min_tokens)
            text += checked.text
            if checked.matched:
                return text, checked.matched
        return text, ""

    def _follow_stages(self, piece: str) -> None:
        marker = self.meter.stage_marker
        seen = self._marker_tail + piece
        if marker in seen:
            self.meter.end_stage()
            self._marker_tail = ""
        else:
            self._marker_tail = seen[-(len(marker) - 1) :] if len(marker) > 1 else ""
