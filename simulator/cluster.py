"""A simulated cluster: requests arrive, a policy places them on engines, and the outcome says what was kept."""

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
    """A policy decides which engine serves a request; it is also the listener of its engines.

    `simulator.policies.base.BasePolicy` has what most policies need.
    """

    @property
    def engines(self) -> Sequence[Engine]:
        """Every worker of the cluster, those included that have failed."""

    def arrive(self, request: SimRequest) -> None:
        """Take a new request: submit it to an engine, now or later, or refuse it."""

    def lost(self, engine: Engine, requests: Sequence[SimRequest]) -> None:
        """Place the requests of a failed engine anew; their KV caches are lost, and they have to be computed again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker fails at a given time, loses everything it holds, and comes back empty."""

    at_s: float
    worker: int
    """Index of the worker, modulo the number of workers."""
    for_s: float
    """Seconds until the worker is back."""


@dataclass(slots=True)
class PolicyContext:
    """A policy is built from this: the clock, the hardware, the network, and where to report the end of a request."""

    events: Events
    machine: Machine
    workers: int
    fabric: Fabric
    seed: int
    done: Callable[[SimRequest], None]
    """Called exactly once for each request, when it has ended or was refused."""


MakePolicy = Callable[[PolicyContext], Policy]


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The figures of one run, over the requests that are scored; a request that did not end counts as missed."""

    offered: int
    attained: int
    """Number of requests that kept their whole contract."""
    guaranteed: int
    guaranteed_kept: int
    span_s: float
    """Seconds from the first to the last arrival of a scored session."""
    drained_s: float
    """Virtual time at which the last scored request ended, in seconds."""
    steps: int
    """Number of engine steps, of all workers together."""
    stopped_early: bool
    """The run ended as soon as `most_missed` was decided, so that all figures are lower bounds."""
    requests: tuple[SimRequest, ...] = ()
    """Every request, in order of arrival, unscored ones included; empty unless the run keeps them."""

    @property
    def attainment(self) -> float:
        return self.attained / self.offered if self.offered else 1.0

    @property
    def goodput_rps(self) -> float:
        return self.attained / self.span_s if self.span_s > 0 else 0.0


class Cluster:
    """One run of a workload against a policy, in virtual time."""

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
            offered: sessions, in order of arrival.
            scored: indices of the sessions that count, if not all do; the others keep the cluster busy before and
                after them. The run ends when all scored requests have ended.
            seed: for step times and accepted drafts.
            most_missed: stop as soon as it is certain whether more scored requests than this miss their contract.
            keep: the outcome lists every request, unscored ones included.
            progress: called with the number of scored requests that have ended so far.
        """
        self._events = Events()
        context = PolicyContext(self._events, machine, workers, Fabric(machine.link), seed, self._done)
        self.policy = make_policy(context)
        self._machine = machine
        self._offered = offered
        self._most_missed = most_missed
        self._keep = keep
        self._progress = progress
        self._arrived = self._ended = self._attained = self._missed = 0
        self._guaranteed = self._kept = 0
        self._drained_s = 0.0
        self._requests: list[SimRequest] = []
        self._scored = range(len(offered)) if scored is None else scored
        self._total = sum(offered[index].rounds for index in self._scored)
        self._stopped_early = False
        self._next = 0
        for failure in failures:
            self._events.at(failure.at_s, functools.partial(self._fail, failure))

    def run(self) -> RunOutcome:
        """Simulate until every scored request has ended, or until `most_missed` is decided."""
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
            stopped_early=self._stopped_early,
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
        """Score a request that has ended or was refused, and schedule the next request of its session."""
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
        if self._most_missed is not None:
            least_attained = self._total - self._most_missed
            self._stopped_early = self._missed > self._most_missed or self._attained >= least_attained
        if self._stopped_early or (self._ended == self._total and len(self._scored) < len(self._offered)):
            self._events.stopped = True

    def _fail(self, failure: Failure) -> None:
        engines = self.policy.engines
        engine = engines[failure.worker % len(engines)]
        lost = engine.fail()
        self._events.at(self._events.now_s + failure.for_s, engine.recover)
        for request in lost:
            request.export = False
        self.policy.lost(engine, lost)
