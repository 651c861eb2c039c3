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
from simulator.request import Live, Offered


class Policy(Protocol):
    """Who decides where requests run. It is the listener of its engines as well."""

    @property
    def engines(self) -> Sequence[Engine]: ...
    def arrive(self, live: Live) -> None: ...

    def lost(self, engine: Engine, lives: Sequence[Live]) -> None:
        """The engine failed; what these requests had computed there is gone."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One worker is gone for a while."""

    at_s: float
    worker: int
    for_s: float


@dataclass(slots=True)
class Site:
    """What a policy is made on: clock, hardware, network, and where to report the end of a request."""

    events: Events
    machine: Machine
    workers: int
    fabric: Fabric
    seed: int
    done: Callable[[Live], None]


MakePolicy = Callable[[Site], Policy]


@dataclass(frozen=True, slots=True)
class Outcome:
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
    lives: tuple[Live, ...] = ()

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
        offered: Sequence[Offered],
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
        site = Site(self._events, machine, workers, Fabric(machine.link), seed, self._done)
        self.policy = make_policy(site)
        self._machine = machine
        self._offered = offered
        self._most_missed = math.inf if most_missed is None else most_missed
        self._keep = keep
        self._progress = progress
        self._arrived = self._ended = self._attained = self._missed = 0
        self._guaranteed = self._kept = 0
        self._drained_s = 0.0
        self._lives: list[Live] = []
        self._scored = range(len(offered)) if scored is None else scored
        self._total = sum(offered[index].rounds for index in self._scored)
        self._hopeless = False
        self._next = 0
        for failure in failures:
            self._events.at(failure.at_s, functools.partial(self._fail, failure))

    def run(self) -> Outcome:
        self._schedule_next()
        self._events.run()
        scored = self._scored
        span_s = self._offered[scored[-1]].at_s - self._offered[scored[0]].at_s if scored else 0.0
        return Outcome(
            offered=self._total,
            attained=self._attained,
            guaranteed=self._guaranteed,
            guaranteed_kept=self._kept,
            span_s=span_s,
            drained_s=self._drained_s,
            steps=sum(engine.usage.steps for engine in self.policy.engines),
            stopped=self._hopeless,
            lives=tuple(self._lives),
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

    def _arrive(self, offered: Offered, *, scored: bool) -> None:
        contract = offered.contract
        if offered.follow_up is None and contract.session_final and contract.final_decode:
            tpots_s = tuple(target.tpot_s for target in contract.final_decode)
        else:
            tpots_s = tuple(target.tpot_s for target in contract.decode)
        ttft_s = contract.ttft_s(self._machine.idle_prefill_s(offered.prompt_tokens))
        live = Live(f"r{self._arrived}", offered, self._events.now_s, math.inf if ttft_s is None else ttft_s, tpots_s)
        live.scored = scored
        self._arrived += 1
        if self._keep:
            self._lives.append(live)
        if offered.prompt_tokens + offered.output_tokens > self._machine.kv_tokens:
            live.missed = True
            live.generated, live.ended_s = live.output_tokens, self._events.now_s
            self._done(live)
            return
        if self._machine.request_delay_s:
            self._events.at(self._events.now_s + self._machine.request_delay_s, lambda: self.policy.arrive(live))
        else:
            self.policy.arrive(live)

    def _done(self, live: Live) -> None:
        """The request has ended, or was refused."""
        if live.scored:
            self._score(live)
        follow_up = live.offered.follow_up
        if follow_up is not None:
            at_s = self._events.now_s + live.offered.delay_s
            self._events.at(at_s, lambda: self._arrive(follow_up, scored=live.scored))

    def _score(self, live: Live) -> None:
        self._ended += 1
        self._drained_s = self._events.now_s
        self._attained += live.attained
        self._missed += not live.attained
        if live.guaranteed:
            self._guaranteed += 1
            self._kept += live.attained
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
        for live in lost:
            live.export = False
        self.policy.lost(engine, lost)
