"""Router and simulator are told the same and decide the same: the simulator is the shipped router in virtual time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from services.slo.admission import Outcome
from services.slo.admission.recording import Event
from services.slo.admission.recording.asked import Decided, GaveRoom, PlacedAgain, Submitted
from simulator.cluster import Cluster, PolicyContext
from simulator.machine import machine
from simulator.policies import promising
from simulator.policies.choices import Choices, Roles
from simulator.scenarios import at_rate, generate, scenario
from simulator.tenants import sent_by
from tests.support.tiny_model import write_tiny_model
from tests.unit.router.virtual_time.router_policy import RouterPolicy
from tests.unit.services.slo.admission.recording.simulated import RecordedPolicy

MACHINE = machine("qwen2.5-7b-a100")


def decisions(events: list[Event]) -> list[Event]:
    """Return what a core decided: rounds, submissions, room given and requests placed again."""
    return [
        event
        for event in events
        if isinstance(event, Decided | PlacedAgain) or (isinstance(event, Submitted | GaveRoom) and event.answer)
    ]


@pytest.mark.parametrize("roles", list(Roles))
@pytest.mark.parametrize(
    ("rate_rps", "tenants"), [(12.0, {"a": 1.0}), (26.0, {"a": 1.0}), (26.0, {"a": 1.0, "b": 3.0})]
)
def test_both_adapters_decide_the_same(
    roles: Roles, rate_rps: float, tenants: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The router's clock stands still while it plans.
    monkeypatch.setattr(promising, "PLANNING_S", 0.0)
    choices = Choices(roles=roles, prefills=0 if roles is Roles.COLOCATED else 1)
    offered = sent_by(at_rate(generate(scenario("chatbot"), 120, 7), rate_rps), tenants, 7)
    model_dir = write_tiny_model(tmp_path)
    simulated: list[RecordedPolicy] = []
    routed: list[RouterPolicy] = []

    def simulator(context: PolicyContext) -> RecordedPolicy:
        simulated.append(RecordedPolicy(context, choices, (0.1,)))
        return simulated[-1]

    def router(context: PolicyContext) -> RouterPolicy:
        routed.append(RouterPolicy(context, choices, model_dir, monkeypatch))
        return routed[-1]

    first = Cluster(MACHINE, 2, simulator, offered, seed=7).run()
    second = Cluster(MACHINE, 2, router, offered, seed=7).run()
    ours, theirs = decisions(simulated[0].told), decisions(routed[0].told)
    routed[0].close()
    for one, other in zip(ours, theirs, strict=False):
        assert one == other
    assert len(ours) == len(theirs)
    assert (first.attained, first.guaranteed, first.steps) == (second.attained, second.guaranteed, second.steps)
    outcomes = Counter(
        verdict.outcome for event in ours if isinstance(event, Decided) for verdict in event.answer.verdicts
    )
    assert outcomes[Outcome.GUARANTEED] > 20
    assert outcomes[Outcome.HELD] > 0 or rate_rps < 20
