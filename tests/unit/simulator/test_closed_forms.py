"""The event core and the engine against what queueing theory says."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest

from services.slo.admission import DEFAULT_OPTIONS
from services.slo.composer import Limits
from services.slo.contract import Contract, PrefillTarget
from services.slo.performance import PerformanceCoefficients, PerformanceModel
from simulator.cluster import Cluster, PolicyContext
from simulator.knowledge import Knowledge
from simulator.machine import Machine, machine
from simulator.policies import promising
from simulator.policies.choices import Choices
from simulator.policies.fcfs import Fcfs, Replicas, fixed
from simulator.policies.promising import PromisingPolicy
from simulator.request import OfferedRequest

SERVICE_S = 0.1
PROMPT = 100


def one_at_a_time() -> Machine:
    """Every step computes one prompt and takes the same time."""
    coefficients = PerformanceCoefficients(SERVICE_S - PROMPT * 1e-6, 1e-6, 0.0, 0.0, "placeholder")
    return replace(
        machine("qwen2.5-7b-a100"),
        truth=PerformanceModel(coefficients),
        limits=Limits(max_step_tokens=PROMPT, max_running_requests=100_000, block_tokens=16),
        noise=0.0,
    )


def arrivals(count: int, load: float, seed: int, ttft_s: tuple[float, float] = (1e3, 1e3)) -> list[OfferedRequest]:
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(SERVICE_S / load, count))
    targets = rng.uniform(*ttft_s, count)
    return [
        OfferedRequest(float(at), "", PROMPT, 1, Contract(PrefillTarget(ttft_s=float(ttft))))
        for at, ttft in zip(at_s, targets, strict=True)
    ]


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_waiting_time_is_that_of_an_m_d_1_queue(load: float) -> None:
    def make(context: PolicyContext) -> Replicas:
        return Replicas(context, Fcfs(fixed(PROMPT), prompts_alone=True))

    outcome = Cluster(one_at_a_time(), 1, make, arrivals(40_000, load, 3), keep=True).run()
    waited_s = np.mean([request.first_s - request.arrival_s for request in outcome.requests]) - SERVICE_S
    assert waited_s == pytest.approx(load * SERVICE_S / (2 * (1 - load)), rel=0.06)


def test_promised_prompts_are_served_earliest_deadline_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promising, "PLANNING_S", 0.0)
    offered = arrivals(2_000, 0.9, 5, ttft_s=(20.0, 60.0))
    choices = Choices(knowledge=Knowledge(error=0.0, learns=False, lengths=True))
    outcome = Cluster(
        one_at_a_time(), 1, lambda context: PromisingPolicy(context, choices, ()), offered, keep=True
    ).run()
    assert outcome.attained == outcome.offered
    ends_s = {request.arrival_s: request.first_s for request in outcome.requests}
    # Nobody is ranked as due later than the patience of best effort after its arrival.
    patience_s = DEFAULT_OPTIONS.best_effort_patience_s
    ranks_s = [
        (request.at_s, request.at_s + min(patience_s, request.contract.ttft_s(0.0) or 0.0)) for request in offered
    ]
    assert [ends_s[request.at_s] for request in offered] == pytest.approx(edf(ranks_s), abs=1e-6)


def edf(jobs: list[tuple[float, float]]) -> list[float]:
    """When each of these ends on a server that begins the one due first whenever it is free."""
    ends, now_s, following = [0.0] * len(jobs), 0.0, 0
    waiting: list[tuple[float, int]] = []
    while following < len(jobs) or waiting:
        if not waiting:
            now_s = max(now_s, jobs[following][0])
        while following < len(jobs) and jobs[following][0] <= now_s:
            heapq.heappush(waiting, (jobs[following][1], following))
            following += 1
        _, job = heapq.heappop(waiting)
        now_s += SERVICE_S
        ends[job] = now_s
    return ends
