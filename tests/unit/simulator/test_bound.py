"""The clairvoyant bound is one: nobody, however lucky, attains more."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from services.slo.contract import PAPER_PROFILES
from simulator.bound import most_attained
from simulator.capacity import Bench
from simulator.machine import Machine, machine
from simulator.policies.catalogue import POLICIES, Setting, policy
from simulator.request import Offered
from simulator.scenarios import at_rate, generate, scenario

EXACT = machine("qwen2.5-7b-a100", noise=0.0)
OPT = machine("opt-13b-2xa100", noise=0.0)


def most_by_search(offered: Sequence[Offered], worker: Machine) -> int:
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
    offered = [Offered(0.005 * index, "", size, 1, contract) for index, size in enumerate(sizes)]
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
