"""Recordings of a simulated cluster at overload: a few thousand events of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from services.slo.admission import AdmissionCore, AdmissionOptions
from services.slo.admission.recording import Event, RecordingCore
from services.slo.transfer import TransferModel
from simulator.cluster import Cluster, Failure, PolicyContext
from simulator.knowledge import KnownLengths
from simulator.machine import machine
from simulator.policies.choices import Choices, Roles
from simulator.policies.promising import PromisingPolicy
from simulator.scenarios import at_rate, generate, scenario

MACHINE = machine("qwen2.5-7b-a100")


class RecordedPolicy(PromisingPolicy):
    """Ours, with every call of its core kept."""

    def __init__(self, context: PolicyContext, choices: Choices, tpots_s: Sequence[float]) -> None:
        self.told: list[Event] = []
        super().__init__(context, choices, tpots_s)

    def make_core(self, options: AdmissionOptions, lengths: KnownLengths | None, seed: int) -> AdmissionCore:
        return RecordingCore(self.told.append, options, link=self.machine.link, lengths=lengths, seed=seed)


@cache
def recorded(
    roles: Roles, requests: int = 120, rate_rps: float = 24.0
) -> tuple[AdmissionOptions, TransferModel, int, list[Event]]:
    """Return options, link and seed of a core on two workers, one of which fails for a while, and its events."""
    choices = Choices(roles=roles, prefills=0 if roles is Roles.COLOCATED else 1)
    offered = at_rate(generate(scenario("chatbot"), 120, 5), 24.0)
    policies: list[RecordedPolicy] = []

    def make(context: PolicyContext) -> RecordedPolicy:
        policies.append(RecordedPolicy(context, choices, (0.1,)))
        return policies[-1]

    failures = [Failure(1.5, 1, 0.5)] if roles is Roles.COLOCATED else []
    Cluster(MACHINE, 2, make, offered, seed=5, failures=failures).run()
    (policy,) = policies
    return policy.core.options, MACHINE.link, 5, policy.told
