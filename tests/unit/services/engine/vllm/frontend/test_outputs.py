"""vLLM's outputs of one step, and the claims of the requests they belong to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.engine.kv.handle import KvPull
from services.engine.protocol import EngineRequest, FinishReason, SamplingOptions, TokenLogprob
from services.engine.vllm.frontend.live_requests import LiveRequest
from services.engine.vllm.frontend.outputs import aborted, logprobs, translate

NOW_S = 5000.0
SCHEDULED, QUEUED = 2, 1
"""Values of vLLM's `EngineCoreEventType`."""


class ClaimSpy:
    """Remembers how a claim was ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def confirm(self) -> None:
        self.ended.append("confirmed")

    def give_back(self) -> None:
        self.ended.append("given back")


def live(claim: Any = None) -> LiveRequest:
    request = EngineRequest("r", (1, 2, 3), 0, SamplingOptions(max_tokens=4))
    return LiveRequest(request, "epoch-1", NOW_S, claim=claim)


def output(**fields: Any) -> Any:
    """One output as EngineCore sends it."""
    defaults: dict[str, Any] = {
        "new_token_ids": [5],
        "new_logprobs": None,
        "finish_reason": None,
        "stop_reason": None,
        "events": None,
        "prefill_stats": None,
    }
    return SimpleNamespace(**defaults | fields)


def event(kind: int, at_s: float) -> Any:
    return SimpleNamespace(type=kind, timestamp=at_s)


def test_the_first_output_tells_how_long_the_request_waited_and_ran() -> None:
    request = live()
    events = [event(QUEUED, NOW_S + 0.1), event(SCHEDULED, NOW_S + 0.5)]
    first = translate(request, output(events=events), NOW_S + 2.0, None)
    assert (first.request_id, first.token_ids, first.finish_reason) == ("r", (5,), None)
    assert first.timings is not None
    assert (first.timings.wait_s, first.timings.run_s) == (0.5, 1.5)
    assert (first.timings.cached_tokens, first.timings.kv_pull, first.timings.kv_recompute_reason) == (0, None, "")
    assert translate(request, output(), NOW_S + 3.0, None).timings is None


def test_only_the_first_scheduling_counts() -> None:
    """A request that was preempted before its first token is scheduled again."""
    request = live()
    events = [event(SCHEDULED, NOW_S + 0.5), event(SCHEDULED, NOW_S + 1.5)]
    first = translate(request, output(events=events), NOW_S + 2.0, None)
    assert first.timings is not None
    assert first.timings.wait_s == 0.5


def test_an_output_without_scheduling_waited_all_the_time() -> None:
    first = translate(live(), output(), NOW_S + 2.0, None)
    assert first.timings is not None
    assert (first.timings.wait_s, first.timings.run_s) == (2.0, 0.0)


def test_no_duration_is_negative() -> None:
    first = translate(live(), output(events=[event(SCHEDULED, NOW_S - 1.0)]), NOW_S - 2.0, None)
    assert first.timings is not None
    assert (first.timings.wait_s, first.timings.run_s) == (0.0, 0.0)


def test_the_first_output_tells_what_came_of_the_kv_cache() -> None:
    request = live()
    request.pull = KvPull(4096, 0.01)
    request.recompute_reason = "late"
    first = translate(request, output(prefill_stats=SimpleNamespace(num_local_cached_tokens=64)), NOW_S, None)
    assert first.timings is not None
    assert first.timings.cached_tokens == 64
    assert first.timings.kv_pull == KvPull(4096, 0.01)
    assert first.timings.kv_recompute_reason == "late"


@pytest.mark.parametrize(
    ("vllms", "ours"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("abort", FinishReason.ABORT),
        ("error", FinishReason.ERROR),
        ("repetition", FinishReason.ERROR),
        (None, None),
    ],
)
def test_every_end_has_a_reason(vllms: str | None, ours: FinishReason | None) -> None:
    assert translate(live(), output(finish_reason=vllms), NOW_S, None).finish_reason is ours


def test_only_a_token_that_stopped_the_output_is_named() -> None:
    assert translate(live(), output(stop_reason=7), NOW_S, None).stop_token_id == 7
    assert translate(live(), output(stop_reason="text"), NOW_S, None).stop_token_id is None
    assert translate(live(), output(), NOW_S, None).stop_token_id is None


def test_an_aborted_request_that_never_ran_says_how_long_it_waited() -> None:
    last = aborted(live(), NOW_S + 3.0)
    assert (last.request_id, last.token_ids, last.finish_reason) == ("r", (), FinishReason.ABORT)
    assert last.timings is not None
    assert (last.timings.wait_s, last.timings.run_s) == (3.0, 0.0)


def test_log_probabilities_name_the_chosen_token_first() -> None:
    found: Any = SimpleNamespace(
        logprob_token_ids=[[9, 4, 9], [5, 5, 6]],
        logprobs=[[-2.0, -0.1, -2.0], [-0.5, -0.5, -1.5]],
        sampled_token_ranks=[2, 1],
    )
    assert logprobs(found) == (
        (TokenLogprob(9, -2.0, 2), TokenLogprob(4, -0.1, 1), TokenLogprob(9, -2.0, 2)),
        (TokenLogprob(5, -0.5, 1), TokenLogprob(5, -0.5, 1), TokenLogprob(6, -1.5, 2)),
    )
    assert translate(live(), output(new_logprobs=found), NOW_S, None).logprobs == logprobs(found)


def test_a_claim_is_confirmed_only_after_a_pull() -> None:
    claim = ClaimSpy()
    request = live(claim)
    request.pull = KvPull(4096, 0.01)
    request.end_claim()
    request.end_claim()
    assert claim.ended == ["confirmed"]


def test_a_claim_without_a_pull_is_given_back() -> None:
    claim = ClaimSpy()
    live(claim).end_claim()
    assert claim.ended == ["given back"]


def test_what_is_computed_here_need_not_be_held_elsewhere() -> None:
    claim = ClaimSpy()
    request = live(claim)
    request.recompute("the pull ended after its lease")
    assert claim.ended == ["given back"]
    assert request.recompute_reason == "the pull ended after its lease"
