"""Work lists to compose steps from, and an engine that does what compositions say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from services.slo.composer import ComposerPolicy, Composition, Limits, SchedulableRequest, TokenDeadlines, compose
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepCost, StepForm

BLOCK = 4
LIMITS = Limits(max_step_tokens=64, max_running_requests=8, block_tokens=BLOCK)
COEFFICIENTS = PerformanceCoefficients(
    overhead_s=0.0099, per_token_s=0.001, per_context_token_s=0.0, per_attention_pair_s=0.0, origin="measured"
)
MODEL = PerformanceModel(COEFFICIENTS)
"""A step of n tokens takes a little less than 10 ms + n * 1 ms."""
EPSILON_S = 1e-9


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK)


def stream(
    name: str, context: int = 5, due_s: float = math.inf, tpot_s: float = 0.05, **options: object
) -> SchedulableRequest:
    work = SchedulableRequest(name, context, 1, True, True, blocks_for(context + 1), due_s, tpot_s)
    return changed(work, **options)


def prefill(
    name: str, pending: int, due_s: float = math.inf, computed: int = 0, **options: object
) -> SchedulableRequest:
    work = SchedulableRequest(name, computed, pending, False, True, blocks_for(computed + pending), due_s)
    return changed(work, **options)


def waiting(name: str, pending: int, due_s: float = math.inf, **options: object) -> SchedulableRequest:
    return changed(SchedulableRequest(name, 0, pending, False, False, 0, due_s), **options)


def changed(work: SchedulableRequest, **options: object) -> SchedulableRequest:
    for option, value in options.items():
        assert hasattr(work, option)
        setattr(work, option, value)
    return work


def step(
    works: Sequence[SchedulableRequest],
    free_blocks: int = 1000,
    limits: Limits = LIMITS,
    policy: ComposerPolicy | None = None,
    now_s: float = 0.0,
    model: PerformanceModel = MODEL,
) -> Composition:
    return compose(
        works, free_blocks, model, limits, now_s, policy or ComposerPolicy(buffer_tpots=0.0, best_case_fraction=1.0)
    )


def _cost(most_s: float) -> st.SearchStrategy[float]:
    """None, or one that a clock could tell from none."""
    return st.one_of(st.just(0.0), st.floats(1e-12, most_s))


times = st.one_of(
    st.floats(-0.2, 1.0), st.floats(0.0, 0.1), st.sampled_from([math.inf, -math.inf, math.nan, 0.0, -1e9, 1e9])
)
rates = st.one_of(st.floats(0.005, 0.3), st.sampled_from([math.inf, math.nan, 0.0, -1.0]))


@st.composite
def work(draw: st.DrawFn, name: str = "?") -> SchedulableRequest:
    running = draw(st.booleans())
    decoding = running and draw(st.booleans())
    pulls_kv = not decoding and draw(st.integers(0, 5)) == 0
    computed = draw(st.integers(1, 60)) if running and not pulls_kv else 0
    pending = 1 if decoding else draw(st.integers(1, 90))
    spare = draw(st.integers(0, 1))
    held = 0
    if running:
        held = blocks_for(computed) + spare if decoding else blocks_for(computed + pending)
    return SchedulableRequest(
        request_id=name,
        computed_tokens=computed,
        pending_tokens=pending,
        decoding=decoding,
        running=running,
        held_blocks=held,
        due_s=draw(times),
        tpot_s=draw(rates),
        best_effort=draw(st.booleans()),
        waiting_since_s=draw(st.floats(-10, 0)),
        draft_tokens=draw(st.integers(0, 4)) if decoding else 0,
        wanted_s=draw(times),
        pulls_kv=pulls_kv,
        pinned=running and draw(st.integers(0, 4)) == 0,
    )


@st.composite
def work_lists(draw: st.DrawFn, max_size: int = 12) -> list[SchedulableRequest]:
    return [draw(work(f"r{index:02}")) for index in range(draw(st.integers(0, max_size)))]


@st.composite
def models(draw: st.DrawFn) -> PerformanceModel:
    costs = _cost(0.01)
    coefficients = PerformanceCoefficients(
        overhead_s=draw(_cost(0.05)),
        per_token_s=draw(costs),
        per_context_token_s=draw(_cost(1e-4)),
        per_attention_pair_s=draw(_cost(1e-4)),
        origin="measured",
        per_request_s=draw(costs),
        per_draft_step_s=draw(costs),
    )
    if draw(st.booleans()):
        memory = StepCost(
            base_s=draw(_cost(0.05)),
            per_token_s=draw(costs),
            per_request_s=draw(costs),
            per_context_token_s=draw(_cost(1e-4)),
            per_draft_step_s=draw(costs),
        )
        coefficients = replace(coefficients, form=StepForm.ROOFLINE, memory=memory)
    margin = st.floats(0.9, 1.5)
    return PerformanceModel(coefficients, margins=(draw(margin), draw(margin), draw(margin)))


limits = st.builds(Limits, st.integers(1, 80), st.integers(1, 14), st.just(BLOCK))
policies = st.builds(
    ComposerPolicy,
    step_cap_s=st.one_of(st.just(math.inf), st.floats(1e-4, 0.3)),
    decode_step_multiple=st.floats(1.01, 3),
    max_step_multiple=st.floats(1.01, 3),
    best_case_fraction=st.floats(0.5, 1),
    reserve_s=st.floats(0, 0.02),
    buffer_tpots=st.floats(0, 1),
    best_effort_step_multiple=st.one_of(st.just(math.inf), st.floats(1, 3)),
    ageing=st.floats(0, 2),
    streams_may_skip=st.booleans(),
)


@dataclass
class Request:
    """What becomes of one request of a simulation."""

    work: SchedulableRequest
    promise: TokenDeadlines
    output_tokens: int
    arrives_s: float
    token_s: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    """By how much each late token was."""

    @property
    def done(self) -> bool:
        return len(self.token_s) >= self.output_tokens


def arriving(
    name: str,
    prompt: int,
    output: int,
    at_s: float = 0.0,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    best_effort: bool = False,
) -> Request:
    promise = TokenDeadlines.begin(at_s, ttft_s, tpot_s, 0)
    new = SchedulableRequest(name, 0, prompt, False, False, 0, promise.due_s, promise.tpot_s, best_effort, at_s)
    return Request(new, promise, output, at_s)


class Simulation:
    """Applies compositions as an engine must, and checks what every engine relies on."""

    def __init__(
        self,
        requests: Sequence[Request],
        blocks: int = 1000,
        limits: Limits = LIMITS,
        policy: ComposerPolicy | None = None,
        took: Callable[[float], float] = lambda predicted_s: predicted_s,
        model: PerformanceModel = MODEL,
    ) -> None:
        self.requests = {request.work.request_id: request for request in requests}
        self.blocks = blocks
        self.free = blocks
        self.limits = limits
        self.policy = policy or ComposerPolicy()
        self.model = model
        self.now_s = 0.0
        self.steps: list[Composition] = []
        self.preemptions: list[str] = []
        self._took = took

    def run(self, most_steps: int = 5000) -> None:
        """Until every request is done."""
        for _ in range(most_steps):
            here = [r for r in self.requests.values() if not r.done and r.arrives_s <= self.now_s]
            if not here:
                coming = [r.arrives_s for r in self.requests.values() if not r.done]
                if not coming:
                    return
                self.now_s = min(coming)
                continue
            self._step(here)
        raise AssertionError(f"not done: {[name for name, r in self.requests.items() if not r.done]}")

    def _step(self, here: list[Request]) -> None:
        works = [r.work for r in here]
        composition = compose(works, self.free, self.model, self.limits, self.now_s, self.policy)
        assert composition.grants, "an idle step while there is work"
        self.steps.append(composition)
        for name in composition.preempted:
            self._preempt(self.requests[name].work)
        for name in composition.admitted:
            admitted = self.requests[name].work
            admitted.running = True
            self._hold(admitted, admitted.pending_tokens)
        for name, tokens in composition.grants.items():
            self._hold(self.requests[name].work, tokens)
        assert sum(r.work.running for r in here) <= self.limits.max_running_requests
        assert self.free >= 0
        self.now_s += self._took(composition.predicted_s)
        for name, tokens in composition.grants.items():
            self._computed(self.requests[name], tokens)

    def _preempt(self, work: SchedulableRequest) -> None:
        self.preemptions.append(work.request_id)
        self.free += work.held_blocks
        work.pending_tokens += work.computed_tokens
        work.held_blocks = work.computed_tokens = 0
        work.running = work.decoding = False

    def _hold(self, work: SchedulableRequest, tokens: int) -> None:
        more = max(0, blocks_for(work.computed_tokens + tokens) - work.held_blocks)
        self.free -= more
        work.held_blocks += more

    def _computed(self, request: Request, tokens: int) -> None:
        work = request.work
        work.computed_tokens += tokens
        work.pending_tokens -= tokens
        if work.pending_tokens:
            return
        work.pending_tokens, work.decoding = 1, True
        if self.now_s > request.promise.due_s + EPSILON_S:
            request.late.append(self.now_s - request.promise.due_s)
        request.token_s.append(self.now_s)
        request.promise.note_tokens(1, self.now_s)
        work.due_s, work.wanted_s = request.promise.due_s, request.promise.wanted_s
        if request.done:
            self.free += work.held_blocks
            work.held_blocks, work.running = 0, False
