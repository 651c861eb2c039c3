"""Each act's verdict on itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cli.demo.acts import comparison, promises, recovery, refusal
from cli.demo.acts.recovery import Recovery, longest_gap_s
from cli.demo.acts.refusal import Refusal
from cli.demo.streams import Served
from cli.demo.tally import Tally, tally
from tests.unit.cli.demo.outcomes import served

LATE_S = 2.0


def sixteen(*, promised: int, missed: int = 0, late: int = 0) -> list[Served]:
    """Sixteen outcomes, the first of which are promised.

    Args:
        missed: how many of the promised ones are late.
        late: how many of the others are.
    """
    return [
        served(
            f"chatbot-{number}",
            ttft_s=LATE_S if number < missed or promised <= number < promised + late else 0.5,
            promised=number < promised,
        )
        for number in range(16)
    ]


def test_requests_are_counted() -> None:
    outcomes = [*sixteen(promised=13, missed=2, late=1), served("coder-1", error="UNAVAILABLE: gone")]
    assert tally(outcomes) == Tally(total=17, complete=16, promised=14, kept=11, in_time=13)
    assert tally(outcomes).missed == 3


@pytest.mark.parametrize("promised", [12, 16])
def test_most_promised_and_nearly_all_kept_is_what_act_1_is_for(promised: int) -> None:
    assert promises.failure(sixteen(promised=promised)) == ""
    assert promises.failure(sixteen(promised=promised, missed=1)) == ""


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        (sixteen(promised=11), "only 11 of 16 were promised"),
        (sixteen(promised=14, missed=2), "2 of 14 promises were missed"),
        ([*sixteen(promised=16)[1:], served("coder-1", error="UNAVAILABLE: gone")], "coder-1: UNAVAILABLE: gone"),
    ],
)
def test_act_1_says_what_it_did_not_show(outcomes: list[Served], why: str) -> None:
    assert why in promises.failure(outcomes)


def test_what_kept_requests_from_a_promise_is_counted() -> None:
    without = [served(promised=False, binding=binding) for binding in ("decode rate", "prefill time", "decode rate")]
    assert promises.because([*without, served()]) == " (decode rate binds 2, prefill time binds 1)"
    assert promises.because([served()]) == ""


def test_promises_must_change_something() -> None:
    with_promises = sixteen(promised=14, late=2)
    without = sixteen(promised=0, late=9)
    assert comparison.failure(with_promises, without) == ""
    assert "14 came in time without promises, 14 with them" in comparison.failure(
        with_promises, sixteen(promised=0, late=2)
    )
    broken = [*without[1:], served("coder-1", promised=False, error="INTERNAL: no")]
    assert "15 of 16 streams are complete; coder-1: INTERNAL: no" in comparison.failure(with_promises, broken)


STORY = Refusal(refused=True, binding="PREFILL_TIME", retry_after_s=2.5, asked_again=1, promised=True, kept=True)


def test_an_honest_refusal_names_what_lacks_and_a_time_at_which_it_keeps_its_word() -> None:
    assert refusal.failure(STORY) == ""


@pytest.mark.parametrize(
    ("story", "why"),
    [
        (replace(STORY, refused=False), "not refused"),
        (replace(STORY, binding=""), "what binds"),
        (replace(STORY, retry_after_s=None), "when to ask again"),
        (replace(STORY, promised=False, asked_again=3), "still refused after it was asked for 3 more times"),
        (replace(STORY, kept=False), "missed"),
        (replace(STORY, error="UNAVAILABLE: gone"), "UNAVAILABLE: gone"),
    ],
)
def test_act_3_says_what_it_did_not_show(story: Refusal, why: str) -> None:
    assert why in refusal.failure(story)


RECOVERY = Recovery(undisturbed=(4, 5, 6), disturbed=(4, 5, 6), gapless=True, restarts=1)


def test_a_killed_worker_costs_no_token() -> None:
    assert recovery.failure(RECOVERY) == ""


@pytest.mark.parametrize(
    ("story", "why"),
    [
        (replace(RECOVERY, restarts=0), "before the worker was killed"),
        (replace(RECOVERY, gapless=False), "lost or repeated"),
        (replace(RECOVERY, disturbed=(4, 5, 7)), "from token 3 on"),
        (replace(RECOVERY, disturbed=(4, 5)), "from token 3 on"),
        (replace(RECOVERY, error="UNAVAILABLE: gone"), "UNAVAILABLE: gone"),
    ],
)
def test_act_4_says_what_it_did_not_show(story: Recovery, why: str) -> None:
    assert why in recovery.failure(story)


def test_the_pause_is_the_longest_gap_from_the_kill_on() -> None:
    times_s = [100.0, 100.9, 101.0, 101.5, 101.6]
    assert longest_gap_s(times_s, since=3) == pytest.approx(0.5)
    assert longest_gap_s(times_s, since=1) == pytest.approx(0.9)
    assert longest_gap_s(times_s, since=5) == 0.0
