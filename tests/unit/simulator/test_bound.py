"""The clairvoyant bound is one: nobody, however lucky, attains more."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.slo.contract import PAPER_PROFILES, Contract, DecodeTarget, PrefillTarget
from services.slo.performance import PerformanceCoefficients, PerformanceModel
from simulator.bound import most_attained
from simulator.capacity import Bench
from simulator.machine import Machine, machine
from simulator.policies.catalogue import POLICIES, Setting, policy
from simulator.request import OfferedRequest
from simulator.scenarios import at_rate, generate, scenario

EXACT = machine("qwen2.5-7b-a100", noise=0.0)
OPT = machine("opt-13b-2xa100", noise=0.0)


def most_by_search(offered: Sequence[OfferedRequest], worker: Machine) -> int:
    """Of prompts that end with their first token, on one worker, prompt by prompt, in every order."""
    best = 0
    for order in itertools.permutations(offered):
        now_s, kept = 0.0, 0
        for request in order:
            took_s = worker.idle_prefill_s(request.prompt_tokens)
            ttft_s = request.contract.ttft_s(took_s)
            assert ttft_s is not None
            ends_s = max(now_s, request.at_s) + took_s
            if ends_s <= request.at_s + ttft_s:
                now_s, kept = ends_s, kept + 1
        best = max(best, kept)
    return best


@pytest.mark.parametrize("seed", range(8))
def test_no_order_of_a_burst_of_prompts_keeps_more(seed: int) -> None:
    sizes = [request.prompt_tokens for request in generate(scenario("coder"), 6, seed)]
    contract = PAPER_PROFILES["summarizer"]
    offered = [OfferedRequest(0.005 * index, "", size, 1, contract) for index, size in enumerate(sizes)]
    most = most_by_search(offered, EXACT)
    assert most <= most_attained(offered, EXACT, 1) * len(offered) + 1e-6


@pytest.mark.parametrize("hardware", [EXACT, OPT], ids=lambda hardware: hardware.name)
@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_attains_more_under_overload(name: str, hardware: Machine) -> None:
    tight = 0
    for kind, rate_rps in (("coder", 40.0), ("chatbot", 60.0), ("mixed", 30.0), ("toolllm", 60.0)):
        offered = at_rate(generate(scenario(kind), 40, 3), rate_rps)
        tpots_s = tuple(sorted({t.tpot_s for o in offered for t in (*o.contract.decode, *o.contract.final_decode)}))
        variants = policy(name)(Setting(hardware, 2, tpots_s))
        most = most_attained(offered, hardware, 2)
        tight += most < 1
        for variant in variants[:1]:
            outcome = Bench.of(hardware, 2, offered).run(variant, rate_rps)
            assert outcome.attainment <= most + 1e-9
    assert tight


def test_a_step_is_shared_by_as_many_as_memory_holds() -> None:
    """Of long answers at their ease, what a step costs besides its work weighs the more, the fewer fit into memory."""
    contract = PAPER_PROFILES["summarizer"]
    offered = [OfferedRequest(0.1 * index, "", 100, 4000, contract) for index in range(400)]
    small = replace(EXACT, kv_tokens=10_000)
    assert most_attained(offered, small, 1) < 0.8 * most_attained(offered, EXACT, 1)
    few = offered[:40]
    outcome = Bench.of(small, 1, few).run(policy("ours-colocated")(Setting(small, 1, (0.1,)))[0], 10.0)
    assert outcome.attainment <= most_attained(few, small, 1)


def test_a_load_that_lasts_is_bounded_by_what_its_work_takes() -> None:
    contract = PAPER_PROFILES["summarizer"]
    offered = [OfferedRequest(0.01 * index, "", 1000, 1, contract) for index in range(5_000)]
    overhead_s, per_token_s, per_request_s = EXACT.truth.vector[:3]
    ttft_s = contract.ttft_s(EXACT.idle_prefill_s(1000))
    assert ttft_s is not None
    takes_s = (1000 * per_token_s + per_request_s) * ttft_s / (ttft_s - overhead_s)
    assert most_attained(offered, EXACT, 1) == pytest.approx(0.01 / takes_s, rel=0.02)


def test_a_follow_up_is_released_when_an_idle_cluster_would_have_answered_the_round_before() -> None:
    """The second prompt is too long for its TTFT: what is kept of it tells from when on it may be computed."""
    overhead_s, token_s, request_s, context_s = 0.01, 1e-4, 0.005, 1e-6
    coefficients = PerformanceCoefficients(overhead_s, token_s, context_s, 0.0, "placeholder", per_request_s=request_s)
    worker = replace(EXACT, truth=PerformanceModel(coefficients), kv_tokens=10_000_000)
    contract = Contract(PrefillTarget(ttft_s=2.0), (DecodeTarget(0.05),))
    prompt, output, delay_s, second = 2000, 51, 0.4, 80_000
    follow_up = OfferedRequest(0.0, "", second, 1, contract)
    session = OfferedRequest(700.0, "", prompt, output, contract, follow_up=follow_up, delay_s=delay_s)
    decodes = output - 1
    first_s = prompt * token_s + request_s
    decode_s = decodes * (token_s + request_s) + context_s * (prompt * decodes + decodes * (decodes - 1) / 2)
    released_s = (1 + decodes) * overhead_s + first_s + decode_s + delay_s
    due_s = 2.0 + decodes * 0.05 + delay_s + 2.0
    kept = (due_s - released_s - overhead_s) / (second * token_s + request_s)
    assert 0.2 < kept < 0.8
    assert most_attained([session], worker, 1) == pytest.approx((1 + kept) / 2, abs=5e-4)
