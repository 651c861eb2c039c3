"""One worker: what it holds, and the steps it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.slo.composer import SchedulableRequest
from services.slo.due_times import LONGEST_GAP_TPOTS, wanted_s
from services.slo.performance import StepShape
from simulator.events import Events
from simulator.machine import Machine
from simulator.prefix_cache import PrefixCache
from simulator.randomness import EngineRandomness
from simulator.request import SimRequest


class Step(Protocol):
    """What a composer answers; `services.slo.composer.Composition` is one."""

    @property
    def grants(self) -> Mapping[str, int]: ...
    @property
    def preempted(self) -> Sequence[str]: ...
    @property
    def admitted(self) -> Sequence[str]: ...
    @property
    def shape(self) -> StepShape: ...
    @property
    def predicted_s(self) -> float: ...


class Composer(Protocol):
    """Who gets how many tokens of an engine's next step."""

    def compose(self, engine: Engine, now_s: float) -> Step: ...

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        """The step has ended."""


class Listener(Protocol):
    """Who is told what happens on an engine, at the end of the step in which it does."""

    def first_token(self, engine: Engine, request: SimRequest) -> None:
        """Of a request that leaves with it; the engine keeps its KV until `release`."""

    def prompt_done(self, engine: Engine, request: SimRequest) -> None:
        """Its prompt, or what was computed again, is in the KV cache; the request decodes here from now on."""

    def ended(self, engine: Engine, request: SimRequest) -> None: ...
    def step_ended(self, engine: Engine) -> None: ...

    def pull(self, engine: Engine, request: SimRequest) -> None:
        """The engine has made room for a KV cache that is elsewhere."""


@dataclass(slots=True)
class Usage:
    """What an engine did."""

    steps: int = 0
    busy_s: float = 0.0
    tokens: int = 0
    preemptions: int = 0


class Engine:
    """Holds requests, composes a step when it is idle and has something to do, and takes the machine's time for it."""

    def __init__(
        self,
        worker_id: str,
        machine: Machine,
        events: Events,
        composer: Composer,
        listener: Listener,
        seed: int,
        reserves_output: bool = False,
    ) -> None:
        """
        Args:
            reserves_output: blocks for the whole output are taken when a request is let in, its length being known.
        """
        self.worker_id = worker_id
        self.machine = machine
        self.composer = composer
        self.requests: dict[str, SimRequest] = {}
        self.free_blocks = machine.kv_blocks
        self.leased_blocks = 0
        """Of KV caches to be pulled from here; not free."""
        self.prefixes = PrefixCache()
        self.usage = Usage()
        self.step: Step | None = None
        self.step_began_s = 0.0
        self.failed = False
        self._events = events
        self._listener = listener
        self._reserves_output = reserves_output
        self._randomness = EngineRandomness(machine, seed)
        self._epoch = 0
        self._between_steps = False
        self._works: list[SchedulableRequest] = []
        self.stream_tokens = 0
        """Tokens that the step which ended last brought to requests that were decoding already."""
        self._served: list[tuple[SimRequest, SchedulableRequest, int]] = []
        """Who is in the step under way, with how many tokens."""
        self._stale = False
        self._block_tokens = machine.limits.block_tokens

    @property
    def works(self) -> list[SchedulableRequest]:
        """Everything it holds, as a composer sees it."""
        if self._stale:
            self._works = [request.work for request in self.requests.values()]
            self._stale = False
        return self._works

    def submit(self, request: SimRequest, *, pulls: bool = False) -> None:
        """A request comes, with its KV cache elsewhere if it `pulls`."""
        work = request.work
        work.running = work.decoding = False
        work.held_blocks = 0
        work.pulls_kv = pulls
        work.waiting_since_s = self._events.now_s
        cached = self.prefixes.use(request.offered) if not pulls and request.offered.prefix else 0
        work.computed_tokens = cached
        work.pending_tokens = request.context_tokens - cached
        self.requests[request.request_id] = request
        self._stale = True
        self.begin()

    def landed(self, request: SimRequest) -> None:
        """Its KV cache is here, all but that of its last token."""
        if self.requests.get(request.request_id) is not request:
            return
        request.work.pulls_kv = False
        request.work.computed_tokens = request.context_tokens - 1
        request.work.pending_tokens = 1
        self.begin()

    def release(self, blocks: int) -> None:
        """A KV cache that was held for another worker is no longer needed."""
        if not self.failed:
            blocks = min(blocks, self.leased_blocks)
            self.leased_blocks -= blocks
            self.free_blocks += blocks
            self.begin()

    def fail(self) -> list[SimRequest]:
        """Everything it held is lost; returns who was here."""
        lost = list(self.requests.values())
        self.requests.clear()
        self._stale = True
        self._epoch += 1
        self.failed = True
        self.step = None
        self.free_blocks = self.machine.kv_blocks
        self.leased_blocks = 0
        self.prefixes.clear()
        return lost

    def recover(self) -> None:
        self.failed = False
        self.begin()

    def begin(self) -> None:
        """Compose the next step, unless one is under way."""
        if self.step is not None or self._between_steps or self.failed or not self.requests:
            return
        now_s = self._events.now_s
        step = self.composer.compose(self, now_s)
        self._apply(step)
        if not step.grants:
            return
        took_s = self.machine.truth.step_s(step.shape) * self._randomness.factor(now_s)
        self.step, self.step_began_s = step, now_s
        self.usage.steps += 1
        self.usage.busy_s += took_s
        self.usage.tokens += step.shape.tokens
        epoch = self._epoch
        self._events.at(now_s + took_s, lambda: self._end(epoch, took_s))

    def _apply(self, step: Step) -> None:
        requests, size = self.requests, self._block_tokens
        for request_id in step.preempted:
            self._preempt(requests[request_id])
        for request_id in step.admitted:
            request = requests[request_id]
            work = request.work
            work.running = True
            tokens = work.computed_tokens + work.pending_tokens
            if self._reserves_output and not request.export:
                tokens = request.offered.prompt_tokens + request.output_tokens
            self._hold(work, tokens)
            if work.pulls_kv:
                self._listener.pull(self, request)
        self._served = served = list[tuple[SimRequest, SchedulableRequest, int]]()
        serve = served.append
        for name, granted in step.grants.items():
            request = requests[name]
            work = request.work
            if work.computed_tokens + granted > work.held_blocks * size:
                self._hold(work, work.computed_tokens + granted)
            serve((request, work, granted))

    def _end(self, epoch: int, took_s: float) -> None:
        if epoch != self._epoch:
            return
        step = self.step
        assert step is not None
        self.step = None
        self._between_steps = True
        # A router hears of a step before it hears what the step brought.
        self.composer.took(self, step.shape, took_s)
        now_s, never = self._events.now_s, math.inf
        single = several = 0
        for request, work, granted in self._served:
            # Nearly all there is, hence first and with `due_times` written out instead of called: a stream gets its one
            # token and goes on.
            generated = request.generated + 1
            if granted == 1 and work.decoding and generated < request.plain_until:
                request.generated = generated
                work.computed_tokens += 1
                single += 1
                due_s, tpot_s = request.due_s, request.tpot_s
                request.due_s = next_s = due_s + tpot_s
                if now_s > due_s:
                    request.missed = True
                if work.tpot_s < never:
                    if request.missed and work.best_effort:
                        work.due_s = work.tpot_s = work.wanted_s = never
                    else:
                        work.due_s = next_s
                        work.wanted_s = now_s + LONGEST_GAP_TPOTS * tpot_s
                continue
            several += self._give(request, granted, now_s)
        self.stream_tokens = single + several
        self._listener.step_ended(self)
        self._between_steps = False
        self.begin()

    def _give(self, request: SimRequest, granted: int, now_s: float) -> int:
        """Carry out what so many tokens of a step bring; returns the tokens of output, if it was decoding before.

        A listener that is told of a request still finds `work.decoding` as it was during the step.
        """
        work = request.work
        if granted < work.pending_tokens:
            work.computed_tokens += granted
            work.pending_tokens -= granted
            return 0
        tokens = 1
        if granted > work.pending_tokens:
            tokens = self._randomness.tokens(granted - 1, request.output_tokens - request.generated)
        work.computed_tokens += work.pending_tokens + tokens - 1
        request.take(tokens, now_s)
        work.pending_tokens = 1
        decoded = work.decoding
        if work.best_effort and request.missed:
            work.due_s = work.tpot_s = work.wanted_s = math.inf
        elif work.due_s < math.inf or work.tpot_s < math.inf:
            work.due_s = request.due_s
            work.tpot_s = request.tpot_s
            work.wanted_s = wanted_s(now_s, request.tpot_s)
        if request.generated >= request.output_tokens:
            self._forget(request)
            self._free(work)
            self._keep_prefix(request)
            self._listener.ended(self, request)
        elif request.export:
            self._forget(request)
            self.leased_blocks += work.held_blocks
            self._keep_prefix(request)
            self._listener.first_token(self, request)
        elif not decoded:
            self._listener.prompt_done(self, request)
            work.decoding = True
        return tokens if decoded else 0

    def _hold(self, work: SchedulableRequest, tokens: int) -> None:
        blocks = -(-tokens // self._block_tokens) - work.held_blocks
        if blocks > 0:
            if blocks > self.free_blocks:
                raise MemoryError(f"{self.worker_id}: a composer granted {blocks} blocks of {self.free_blocks}")
            self.free_blocks -= blocks
            work.held_blocks += blocks

    def _free(self, work: SchedulableRequest) -> None:
        self.free_blocks += work.held_blocks
        work.held_blocks = 0

    def _preempt(self, request: SimRequest) -> None:
        work = request.work
        self._free(work)
        work.computed_tokens = 0
        work.pending_tokens = request.context_tokens
        work.running = work.decoding = False
        self.usage.preemptions += 1

    def _forget(self, request: SimRequest) -> None:
        del self.requests[request.request_id]
        self._stale = True

    def _keep_prefix(self, request: SimRequest) -> None:
        if request.offered.prefix:
            self.prefixes.keep(request.offered, self.free_blocks * self._block_tokens)
