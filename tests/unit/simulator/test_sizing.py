"""The smallest cluster, and questions that no cluster answers."""

from __future__ import annotations

import pytest

from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from simulator.machine import machine
from simulator.scenarios import at_rate, generate, scenario
from simulator.sizing import ImpossiblePromiseError, NoSizeError, sizes, smallest, with_contract

QWEN = machine("qwen2.5-7b-a100")
CHAT = at_rate(generate(scenario("chatbot"), 80, 0), 1.0)


@pytest.mark.parametrize(
    ("ttft_s", "tpot_s"), [(0.001, 0.1), (0.5, 0.001)], ids=["no prompt so fast", "no token so fast"]
)
def test_what_an_idle_worker_cannot_keep_is_said_at_once(ttft_s: float, tpot_s: float) -> None:
    contract = Contract(PrefillTarget(ttft_s=ttft_s), (DecodeTarget(tpot_s),))
    tried = sizes(QWEN, with_contract(CHAT, contract), 5.0, 0.99, 0)
    with pytest.raises(ImpossiblePromiseError, match=r"at least") as failed:
        next(tried)
    assert "ttft=" in str(failed.value)


def test_the_targets_it_names_are_possible() -> None:
    contract = Contract(PrefillTarget(ttft_s=0.01), (DecodeTarget(0.1),))
    with pytest.raises(ImpossiblePromiseError) as failed:
        next(sizes(QWEN, with_contract(CHAT, contract), 5.0, 0.9, 0))
    ttft_s = float(str(failed.value).split("ttft=")[1].split(" ")[0])
    possible = Contract(PrefillTarget(ttft_s=1.01 * ttft_s), (DecodeTarget(0.1),))
    assert next(sizes(QWEN, with_contract(CHAT, possible), 0.01, 0.5, 0)).attainment > 0


def test_more_workers_that_do_not_help_are_not_tried_for_ever() -> None:
    """The promise could be kept on average, but the time of a step varies, and there is none to spare."""
    request = CHAT[0]
    contract = Contract(PrefillTarget(ttft_s=QWEN.idle_prefill_s(request.prompt_tokens)))
    tried = sizes(QWEN, at_rate(with_contract(CHAT[:1] * 40, contract), 0.1), 0.1, 0.99, 0)
    with pytest.raises(NoSizeError, match="do not help"):
        list(tried)


def test_the_smallest_is_found() -> None:
    contract = Contract(PrefillTarget(max_slowdown=5.0), (DecodeTarget(0.1),))
    tried = list(sizes(QWEN, with_contract(CHAT, contract), 20.0, 0.95, 0))
    best = smallest(tried)
    assert best.keeps
    assert all(not size.keeps for size in tried if size.workers < best.workers)
