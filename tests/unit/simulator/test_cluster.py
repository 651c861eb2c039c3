from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from simulator.bound import most_attained
from simulator.capacity import PRECISION, Bench, bisect
from simulator.cluster import Cluster, Failure, RunOutcome
from simulator.events import Events
from simulator.machine import Machine, machine
from simulator.policies.admitted import admitted
from simulator.policies.catalogue import POLICIES, Setting, policy
from simulator.policies.choices import Choices
from simulator.policies.tiers_plan import Item, TierBudget, accept
from simulator.request import OfferedRequest
from simulator.scenarios import at_rate, generate, scenario

QWEN = machine("qwen2.5-7b-a100")
OPT = machine("opt-13b-2xa100")


def tpots_of(offered: Sequence[OfferedRequest]) -> tuple[float, ...]:
    return tuple(sorted({t.tpot_s for o in offered for t in (*o.contract.decode, *o.contract.final_decode)}))


def run(
    name: str, hardware: Machine, offered: Sequence[OfferedRequest], failures: Sequence[Failure] = ()
) -> RunOutcome:
    variants = policy(name)(Setting(hardware, 2, tpots_of(offered)))
    cluster = Cluster(hardware, 2, variants[0].make, offered, seed=1, failures=failures, keep=True)
    outcome = cluster.run()
    for engine in cluster.policy.engines:
        assert not engine.requests
        assert engine.free_blocks == hardware.kv_blocks
        assert engine.leased_blocks == 0
    return outcome


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "vllm-speculative"])
@pytest.mark.parametrize("kind", ["mixed", "toolllm", "reasoning"])
def test_every_policy_serves_everyone_and_gives_all_memory_back(name: str, kind: str) -> None:
    offered = at_rate(generate(scenario(kind), 25, 2), 1.0)
    outcome = run(name, QWEN, offered)
    assert len(outcome.requests) == sum(request.rounds for request in offered) == outcome.offered
    assert all(request.ended for request in outcome.requests)
    assert outcome.attainment <= most_attained(offered, QWEN, 2) + 1e-9


@pytest.mark.parametrize("name", ["ours-colocated", "slos-serve-paper", "vllm-speculative"])
def test_drafts_bring_several_tokens_a_step(name: str) -> None:
    offered = at_rate(generate(scenario("coder"), 30, 2), 0.2)
    outcome = run(name, OPT, offered)
    assert all(request.ended for request in outcome.requests)
    assert outcome.steps > 0


def test_a_run_repeats_exactly() -> None:
    offered = at_rate(generate(scenario("mixed"), 40, 3), 10.0)
    first, second = (run("ours-local-prefill", QWEN, offered) for _ in range(2))
    assert [request.ended_s for request in first.requests] == [request.ended_s for request in second.requests]


@pytest.mark.parametrize("name", ["ours-colocated", "ours-disaggregated", "distserve", "slos-serve-paper"])
def test_requests_of_a_failed_worker_end_elsewhere(name: str) -> None:
    offered = at_rate(generate(scenario("chatbot"), 60, 3), 12.0)
    variants = policy(name)(Setting(QWEN, 2, tpots_of(offered)))
    failures = [Failure(1.0, 0, 2.0), Failure(2.0, 1, 1.0)]
    outcome = Cluster(QWEN, 2, variants[0].make, offered, failures=failures, keep=True).run()
    assert all(request.ended for request in outcome.requests)


def test_best_effort_takes_no_place_among_the_running_from_promises() -> None:
    offered = at_rate(generate(scenario("chatbot"), 250, 3), 40.0)
    crowded = replace(QWEN, limits=replace(QWEN.limits, max_running_requests=24))
    promised = []
    for best_effort in (True, False):
        choices = Choices(best_effort=best_effort)
        variant = policy("ours-colocated")(Setting(crowded, 2, tpots_of(offered), choices))[0]
        outcome = Cluster(crowded, 2, variant.make, offered, seed=1).run()
        assert outcome.guaranteed_kept >= 0.97 * outcome.guaranteed
        promised.append(outcome.guaranteed)
    assert 0 < promised[1] < 250
    assert promised[0] >= 0.8 * promised[1]


def test_best_effort_with_short_prompts_is_spread_over_the_workers() -> None:
    offered = at_rate(generate(scenario("reasoning"), 120, 3), 60.0)
    outcome = run("ours-colocated", QWEN, offered)
    unplanned = [admitted(request).decode_worker_id for request in outcome.requests if not request.guaranteed]
    assert len(unplanned) >= 10
    assert min(unplanned.count(worker_id) for worker_id in ("w0", "w1")) >= 0.25 * len(unplanned)


def test_events_happen_in_order_and_never_in_the_past() -> None:
    events, seen = Events(), []
    for at_s, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        events.at(at_s, lambda name=name: seen.append(name))  # type: ignore[misc]
    events.run(1.5)
    assert seen == ["a", "b"]
    events.run()
    assert seen == ["a", "b", "c"]
    with pytest.raises(ValueError, match="before"):
        events.at(0.5, lambda: None)


def test_capacity_is_found_by_bisection() -> None:
    assert bisect(lambda rate: rate <= 7.3, 4.0) == pytest.approx(7.3, rel=PRECISION)
    assert bisect(lambda rate: rate <= 0.31, 4.0) == pytest.approx(0.31, rel=PRECISION)
    assert bisect(lambda rate: False, 4.0) == 0.0


def test_a_run_ends_as_soon_as_it_is_certain_whether_enough_is_kept() -> None:
    """Whatever the limit, `carries` says what a run to the end says."""
    offered = at_rate(generate(scenario("chatbot"), 60, 1), 8.0)
    variant = policy("vllm-chunked")(Setting(QWEN, 1, (0.05,)))[0]
    whole = Cluster(QWEN, 1, variant.make, offered).run()
    missed = whole.offered - whole.attained
    assert 2 <= missed <= 58
    for most_missed in (0, missed - 1, missed, missed + 1, 59):
        run = Cluster(QWEN, 1, variant.make, offered, most_missed=most_missed).run()
        assert run.stopped_early
        assert run.drained_s <= whole.drained_s
        assert (run.attained >= 60 - most_missed) == (missed <= most_missed)
    bench = Bench.of(QWEN, 1, offered)
    assert bench.carries(variant, 8.0, 1 - missed / 60)
    assert not bench.carries(variant, 8.0, 1 - (missed - 0.5) / 60)
    assert not whole.stopped_early


def test_requests_before_and_after_those_that_count_keep_them_company() -> None:
    offered = at_rate(generate(scenario("toolllm"), 60, 1), 20.0)
    variant = policy("ours-colocated")(Setting(QWEN, 2, tpots_of(offered)))[0]
    outcome = Cluster(QWEN, 2, variant.make, offered, scored=range(20, 40), keep=True).run()
    counted = [request for request in outcome.requests if request.scored]
    assert len(counted) == outcome.offered == sum(session.rounds for session in offered[20:40])
    assert outcome.attained == sum(request.attained for request in counted)
    assert outcome.span_s == offered[39].at_s - offered[20].at_s
    assert len(outcome.requests) > len(counted)


def test_the_paper_s_planner_accepts_as_many_as_fit() -> None:
    budget = TierBudget.of(QWEN, (0.05, 0.1), 0)
    counts = (0, 0, 0)
    tokens = int(budget.rate(counts))
    items = [Item(1.0, tokens // 3, 1, 0, True, index) for index in range(5)]
    assert len(accept(items, counts, 10, budget) or ()) == 3 - (budget.rate((2, 0, 0)) < tokens / 3)
    assert accept([Item(0.1, tokens, 1, 0, False)], counts, 10, budget) is None
    assert len(accept(items, counts, 1, budget) or ()) == 1
