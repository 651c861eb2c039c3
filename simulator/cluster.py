"""Requests coming to a cluster, and what became of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from simulator.engine import Engine
from simulator.events import Events
from simulator.fabric import Fabric
from simulator.machine import Machine
from simulator.request import OfferedRequest, SimRequest


class Policy(Protocol):
    """Who decides where requests run. It is the listener of its engines as well."""

    @property
    def engines(self) -> Sequence[Engine]: ...
    def arrive(self, request: SimRequest) -> None: ...

    def lost(self, engine: Engine, requests: Sequence[SimRequest]) -> None:
        """The engine failed; what these requests had computed there is gone."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One worker is gone for a while."""

    at_s: float
    worker: int
    for_s: float


@dataclass(slots=True)
class PolicyContext:
    """What a policy is made on: clock, hardware, network, and where to report the end of a request."""

    events: Events
    machine: Machine
    workers: int
    fabric: Fabric
    seed: int
    done: Callable[[SimRequest], None]


MakePolicy = Callable[[PolicyContext], Policy]


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A run. Every request offered counts, but for those that are only there to keep others company.

    Whatever did not end is missed.
    """

    offered: int
    attained: int
    guaranteed: int
    guaranteed_kept: int
    span_s: float
    """From the first to the last arrival of a session that counts."""
    drained_s: float
    """When the last request ended that counts."""
    steps: int
    stopped: bool
    """Given up as hopeless before its end: the figures are incomplete."""
    requests: tuple[SimRequest, ...] = ()

    @property
    def attainment(self) -> float:
        return self.attained / self.offered if self.offered else 1.0

    @property
    def goodput_rps(self) -> float:
        return self.attained / self.span_s if self.span_s > 0 else 0.0


class Cluster:
    """One run of a workload against a policy."""

    def __init__(
        self,
        machine: Machine,
        workers: int,
        make_policy: MakePolicy,
        offered: Sequence[OfferedRequest],
        *,
        scored: range | None = None,
        seed: int = 0,
        failures: Sequence[Failure] = (),
        most_missed: int | None = None,
        keep: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            scored: those of `offered` that count, if not all do. The run ends when they have all ended.
            most_missed: give up once more requests than this are missed.
            keep: the outcome has every request, those that do not count as well.
            progress: called with the number of requests that have ended and count.
        """
        self._events = Events()
        context = PolicyContext(self._events, machine, workers, Fabric(machine.link), seed, self._done)
        self.policy = make_policy(context)
        self._machine = machine
        self._offered = offered
        self._most_missed = math.inf if most_missed is None else most_missed
        self._keep = keep
        self._progress = progress
        self._arrived = self._ended = self._attained = self._missed = 0
        self._guaranteed = self._kept = 0
        self._drained_s = 0.0
        self._requests: list[SimRequest] = []
        self._scored = range(len(offered)) if scored is None else scored
        self._total = sum(offered[index].rounds for index in self._scored)
        self._hopeless = False
        self._next = 0
        for failure in failures:
            self._events.at(failure.at_s, functools.partial(self._fail, failure))

    def run(self) -> RunOutcome:
        self._schedule_next()
        self._events.run()
        scored = self._scored
        span_s = self._offered[scored[-1]].at_s - self._offered[scored[0]].at_s if scored else 0.0
        return RunOutcome(
            offered=self._total,
            attained=self._attained,
            guaranteed=self._guaranteed,
            guaranteed_kept=self._kept,
            span_s=span_s,
            drained_s=self._drained_s,
            steps=sum(engine.usage.steps for engine in self.policy.engines),
            stopped=self._hopeless,
            requests=tuple(self._requests),
        )

    def _schedule_next(self) -> None:
        if self._next < len(self._offered):
            self._events.at(max(self._events.now_s, self._offered[self._next].at_s), self._arrival)

    def _arrival(self) -> None:
        offered = self._offered[self._next]
        scored = self._next in self._scored
        self._next += 1
        self._schedule_next()
        self._arrive(offered, scored=scored)

    def _arrive(self, offered: OfferedRequest, *, scored: bool) -> None:
        contract = offered.contract
        if offered.follow_up is None and contract.session_final and contract.final_decode:
            tpots_s = tuple(target.tpot_s for target in contract.final_decode)
        else:
            tpots_s = tuple(target.tpot_s for target in contract.decode)
        ttft_s = contract.ttft_s(self._machine.idle_prefill_s(offered.prompt_tokens))
        request = SimRequest(
            f"r{self._arrived}", offered, self._events.now_s, math.inf if ttft_s is None else ttft_s, tpots_s
        )
        request.scored = scored
        self._arrived += 1
        if self._keep:
            self._requests.append(request)
        if offered.prompt_tokens + offered.output_tokens > self._machine.kv_tokens:
            request.missed = True
            request.generated, request.ended_s = request.output_tokens, self._events.now_s
            self._done(request)
            return
        if self._machine.request_delay_s:
            self._events.at(self._events.now_s + self._machine.request_delay_s, lambda: self.policy.arrive(request))
        else:
            self.policy.arrive(request)

    def _done(self, request: SimRequest) -> None:
        """The request has ended, or was refused."""
        if request.scored:
            self._score(request)
        follow_up = request.offered.follow_up
        if follow_up is not None:
            at_s = self._events.now_s + request.offered.delay_s
            self._events.at(at_s, lambda: self._arrive(follow_up, scored=request.scored))

    def _score(self, request: SimRequest) -> None:
        self._ended += 1
        self._drained_s = self._events.now_s
        self._attained += request.attained
        self._missed += not request.attained
        if request.guaranteed:
            self._guaranteed += 1
            self._kept += request.attained
        if self._progress is not None:
            self._progress(self._ended)
        self._hopeless = self._missed > self._most_missed
        if self._hopeless or (self._ended == self._total and len(self._scored) < len(self._offered)):
            self._events.stopped = True

    def _fail(self, failure: Failure) -> None:
        engines = self.policy.engines
        engine = engines[failure.worker % len(engines)]
        lost = engine.fail()
        self._events.at(self._events.now_s + failure.for_s, engine.recover)
        for request in lost:
            request.export = False
        self.policy.lost(engine, lost)
