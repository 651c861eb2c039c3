"""Tenants of a simulated workload: who sends what, what each was promised, and what its fair share would have been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.slo.admission.promise_cost import prompt_work_s, stream_token_s
from simulator.machine import Machine
from simulator.request import OfferedRequest, SimRequest


@dataclass(frozen=True, slots=True)
class TenantOutcome:
    """What became of the scored requests of one tenant."""

    tenant: str
    offered: int
    promised: int
    kept: int
    """Promises kept."""
    attained: int
    """Contracts kept, promised or not."""
    offered_work_s: float
    """Worker time that all its requests would take, in seconds."""
    promised_work_s: float
    """Worker time that the promised ones take, in seconds."""


def sent_by(offered: Sequence[OfferedRequest], arrivals: Mapping[str, float], seed: int) -> list[OfferedRequest]:
    """Return the same sessions, each sent by a tenant that is drawn at random.

    Args:
        arrivals: how often each tenant sends, relative to the others.
    """
    rng = np.random.default_rng(seed)
    tenants = list(arrivals)
    shares = np.array([arrivals[tenant] for tenant in tenants])
    drawn = rng.choice(len(tenants), size=len(offered), p=shares / shares.sum())
    return [_named(session, tenants[int(index)]) for session, index in zip(offered, drawn, strict=True)]


def outcomes(requests: Sequence[SimRequest], machine: Machine) -> dict[str, TenantOutcome]:
    """Return the outcome of every tenant over its scored requests."""
    by_tenant: dict[str, list[SimRequest]] = {}
    for request in requests:
        if request.scored:
            by_tenant.setdefault(request.offered.tenant, []).append(request)
    return {
        tenant: TenantOutcome(
            tenant,
            len(theirs),
            sum(request.guaranteed for request in theirs),
            sum(request.guaranteed and request.attained for request in theirs),
            sum(request.attained for request in theirs),
            sum(work_s(request.offered, machine) for request in theirs),
            sum(work_s(request.offered, machine) for request in theirs if request.guaranteed),
        )
        for tenant, theirs in sorted(by_tenant.items())
    }


def work_s(offered: OfferedRequest, machine: Machine) -> float:
    """Return the worker time that a request takes beside others, nothing of it cached, in seconds."""
    context_tokens = offered.prompt_tokens + offered.output_tokens // 2
    prompt_s = prompt_work_s(machine.truth, offered.prompt_tokens, offered.prompt_tokens)
    return prompt_s + offered.output_tokens * stream_token_s(machine.truth, context_tokens)


def max_min_shares(demands: Mapping[str, float], weights: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Return what each tenant gets if capacity is given out fairly: nobody more than it asks for, the rest by weight.

    Args:
        weights: 1 for tenants that are not named.
    """
    shares: dict[str, float] = {}
    left = dict(demands)
    while left:
        level = capacity / sum(weights.get(tenant, 1.0) for tenant in left)
        full = [tenant for tenant, demand in left.items() if demand <= level * weights.get(tenant, 1.0)]
        if not full:
            return shares | {tenant: level * weights.get(tenant, 1.0) for tenant in left}
        for tenant in full:
            shares[tenant] = left.pop(tenant)
            capacity -= shares[tenant]
    return shares


def jain_index(values: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 if all values are equal, 1/n if one has everything (DEC-TR-301, 1984)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _named(session: OfferedRequest, tenant: str) -> OfferedRequest:
    follow_up = None if session.follow_up is None else _named(session.follow_up, tenant)
    return replace(session, tenant=tenant, follow_up=follow_up)
