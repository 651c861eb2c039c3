"""Engines for unit tests: exact step times, composers that follow a script, and a listener that writes down calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.slo.composer import Limits
from services.slo.contract import Contract
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepShape
from simulator.engine import Composer, Engine
from simulator.events import Events
from simulator.machine import Machine, machine
from simulator.request import OfferedRequest, SimRequest

TICK_S = 2.0**-10
"""A step takes one tick a prompt token; sums of ticks are exact, so that a token can come exactly when it is due."""
START_S = 512.0
BLOCK_TOKENS = 16


def exact_machine(kv_blocks: int = 1000, acceptance: float = 0.0, max_draft_tokens: int = 0) -> Machine:
    """A worker without noise whose steps take `TICK_S` for each prompt token and nothing else."""
    return replace(
        machine("qwen2.5-7b-a100"),
        truth=PerformanceModel(PerformanceCoefficients(0.0, TICK_S, 0.0, 0.0, "placeholder")),
        limits=Limits(max_step_tokens=4096, max_running_requests=64, block_tokens=BLOCK_TOKENS),
        kv_tokens=kv_blocks * BLOCK_TOKENS,
        noise=0.0,
        acceptance=acceptance,
        max_draft_tokens=max_draft_tokens,
    )


def shape_of(ticks: int) -> StepShape:
    """A step that takes so many ticks on the exact machine."""
    return StepShape(1, ticks, 0.0, 0, 0, 0, 0)


def clock() -> Events:
    """Virtual time that does not begin at 0."""
    events = Events()
    events.now_s = START_S
    return events


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step as a script has it. Satisfies `simulator.engine.Step`."""

    grants: Mapping[str, int] = field(default_factory=dict)
    shape: StepShape = field(default_factory=lambda: shape_of(1))
    preempted: Sequence[str] = ()
    admitted: Sequence[str] = ()
    predicted_s: float = 0.0


@dataclass(slots=True)
class Script:
    """Composes what a function says, and notes which steps the engine reports as taken."""

    next_step: Callable[[Engine, float], PlannedStep]
    took_s: list[float] = field(default_factory=list)

    def compose(self, engine: Engine, now_s: float) -> PlannedStep:
        return self.next_step(engine, now_s)

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        self.took_s.append(seconds)


def steps(*planned: PlannedStep) -> Script:
    """These steps one after the other, and then nothing."""
    left = list(planned)
    return Script(lambda engine, now_s: left.pop(0) if left else PlannedStep())


@dataclass(slots=True)
class Calls:
    """A listener that writes down what it is told, as (what, request id, time)."""

    events: Events
    made: list[tuple[str, str, float]] = field(default_factory=list)
    after: Callable[[float], None] = lambda now_s: None
    """Called with the time when a step has ended and its tokens are there."""

    def first_token(self, engine: Engine, request: SimRequest) -> None:
        self._note("first token", request)

    def prompt_done(self, engine: Engine, request: SimRequest) -> None:
        self._note("prompt done", request)

    def ended(self, engine: Engine, request: SimRequest) -> None:
        self._note("ended", request)

    def pull(self, engine: Engine, request: SimRequest) -> None:
        self._note("pull", request)

    def step_ended(self, engine: Engine) -> None:
        self.made.append(("step ended", "", self.events.now_s))
        self.after(self.events.now_s)

    def _note(self, what: str, request: SimRequest) -> None:
        self.made.append((what, request.request_id, self.events.now_s))

    def named(self, what: str) -> list[tuple[str, float]]:
        """Request and time of each call of this kind."""
        return [(request_id, at_s) for kind, request_id, at_s in self.made if kind == what]


def engine_of(
    composer: Composer, events: Events, hardware: Machine | None = None, *, reserves_output: bool = False, seed: int = 7
) -> tuple[Engine, Calls]:
    calls = Calls(events)
    hardware = hardware or exact_machine()
    return Engine("w0", hardware, events, composer, calls, seed, reserves_output), calls


def request_of(
    name: str,
    prompt_tokens: int,
    output_tokens: int,
    *,
    arrival_s: float = START_S,
    ttft_s: float = 1e3,
    tpots_s: tuple[float, ...] = (),
    first_stage_tokens: int = 0,
    prefix: tuple[int, ...] = (),
    prefix_block_tokens: int = 512,
) -> SimRequest:
    """A request on its way; its contract counts for nothing here but the targets that are given."""
    offered = OfferedRequest(
        arrival_s,
        "chatbot",
        prompt_tokens,
        output_tokens,
        Contract(),
        first_stage_tokens,
        prefix,
        prefix_block_tokens,
    )
    return SimRequest(name, offered, arrival_s, ttft_s, tpots_s)


def pace(request: SimRequest, *, best_effort: bool = False) -> SimRequest:
    """Tell the composer what is owed to the request, as a policy does when it submits it."""
    request.work.best_effort = best_effort
    request.work.due_s, request.work.tpot_s = request.due_s, request.tpot_s
    return request
