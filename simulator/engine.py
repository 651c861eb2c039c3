"""The engine of a simulated worker: the requests it holds, the blocks they take, and the steps it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.slo.composer import SchedulableRequest
from services.slo.due_times import LONGEST_GAP_TPOTS, wanted_s
from services.slo.kv_blocks import blocks_for
from services.slo.performance import StepShape
from simulator.events import Events
from simulator.machine import Machine
from simulator.prefix_cache import PrefixCache
from simulator.randomness import EngineRandomness
from simulator.request import SimRequest


class Step(Protocol):
    """A step as a composer answers it; `services.slo.composer.Composition` is one, and says what the fields mean."""

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
    """A composer decides which requests get how many tokens of an engine's next step."""

    def compose(self, engine: Engine, now_s: float) -> Step:
        """Return the step that begins at `now_s`; one without grants leaves the engine idle until something changes."""

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        """Take note of a step that has ended, before anyone hears what it brought."""


class Listener(Protocol):
    """A listener is told what happens on an engine, at the end of the step in which it happens."""

    def first_token(self, engine: Engine, request: SimRequest) -> None:
        """Take over a request that leaves with its first token; the engine leases its KV cache until `release`."""

    def prompt_done(self, engine: Engine, request: SimRequest) -> None:
        """Take note that a request decodes here from now on: its prompt, or what was lost, is in the KV cache."""

    def ended(self, engine: Engine, request: SimRequest) -> None:
        """Take note that a request has all its output and holds no blocks any more."""

    def step_ended(self, engine: Engine) -> None:
        """Take note that a step has ended, after every request in it was told of; the next one is not composed yet."""

    def pull(self, engine: Engine, request: SimRequest) -> None:
        """Start to move a KV cache that is elsewhere: the engine has blocks for it; `landed` says that it is there."""


@dataclass(slots=True)
class Usage:
    """Counters of what an engine did since it was made."""

    steps: int = 0
    busy_s: float = 0.0
    tokens: int = 0
    preemptions: int = 0


class Engine:
    """An engine that composes a step whenever it is idle and holds requests, and takes the machine's time for it."""

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
        """Make an idle engine with empty memory.

        Args:
            worker_id: unique in the cluster.
            seed: for step times and accepted drafts.
            reserves_output: take blocks for the whole output, whose length is known, when a request is let in.
        """
        self.worker_id = worker_id
        self.machine = machine
        self.composer = composer
        self.requests: dict[str, SimRequest] = {}
        self.free_blocks = machine.kv_blocks
        self.leased_blocks = 0
        """Blocks of KV caches that other workers still have to pull; they are not free."""
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
        """The requests of the step under way, each with the tokens it was granted."""
        self._stale = False
        self._block_tokens = machine.limits.block_tokens

    @property
    def works(self) -> list[SchedulableRequest]:
        """Every request that the engine holds, as a composer sees it."""
        if self._stale:
            self._works = [request.work for request in self.requests.values()]
            self._stale = False
        return self._works

    def submit(self, request: SimRequest, *, pulls: bool = False) -> None:
        """Hold a request from now on; with `pulls`, its KV cache is on another worker and has to be moved first."""
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
        """Let a request decode whose KV cache has arrived: that of all tokens but the last, which is computed here."""
        if self.requests.get(request.request_id) is not request:
            return
        request.work.pulls_kv = False
        request.work.computed_tokens = request.context_tokens - 1
        request.work.pending_tokens = 1
        self.begin()

    def release(self, blocks: int) -> None:
        """Free leased blocks: another worker has pulled the KV cache in them."""
        # A failed engine leases nothing.
        blocks = min(blocks, self.leased_blocks)
        self.leased_blocks -= blocks
        self.free_blocks += blocks
        self.begin()

    def fail(self) -> list[SimRequest]:
        """Lose everything, the step under way included, and return the requests that were here."""
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
        """Work again after `fail`, with empty memory."""
        self.failed = False
        self.begin()

    def begin(self) -> None:
        """Compose the next step and schedule its end, unless one is under way or there is nothing to do."""
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
        blocks = blocks_for(tokens, self._block_tokens) - work.held_blocks
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
