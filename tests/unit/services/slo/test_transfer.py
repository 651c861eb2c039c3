"""KV transfers and hand-overs: learnt per pair, new pairs like the old, bounds that cover."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.slo import transfer
from services.slo.transfer import (
    BUSY_STEPS,
    ENOUGH,
    IDLE_STEPS,
    SHARED_MEMORY_LINK,
    SHIFT_TRANSFERS,
    SLOS_SERVE_LINK,
    HandoverFit,
    Handovers,
    TransferFit,
    TransferModel,
)

STEP_S = 0.040


def _pull(rng: random.Random, link: TransferModel, noise: float = 0.2) -> tuple[int, float]:
    kv_bytes = round(math.exp(rng.uniform(math.log(1e6), math.log(5e8))))
    return kv_bytes, link.transfer_s(kv_bytes) * math.exp(rng.gauss(0.0, noise))


def _feed(handovers: Handovers, count: int, *, target: str = "d", steps: float = 3.0, seed: int = 1) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        kv_bytes, transfer_s = _pull(rng, SHARED_MEMORY_LINK)
        wait_s = transfer_s + (steps - 1) * STEP_S * rng.uniform(0.7, 1.3)
        handovers.observe("p", target, kv_bytes, transfer_s, wait_s, STEP_S, busy=True)


def test_the_measured_link_predicts_what_was_measured() -> None:
    for kv_bytes, transfer_s in ((2.9e6, 0.8e-3), (47.2e6, 13.3e-3)):
        assert SHARED_MEMORY_LINK.transfer_s(kv_bytes) == pytest.approx(transfer_s, rel=0.4)
    for kv_bytes, transfer_s in ((2.9e6, 2.3e-3), (11.8e6, 7.3e-3), (23.6e6, 16e-3), (47.2e6, 31e-3)):
        assert transfer.TCP_LINK.transfer_s(kv_bytes) == pytest.approx(transfer_s, rel=0.12)


@pytest.mark.parametrize("truth", [TransferModel(2e-3, 5e9), TransferModel(20e-3, 1e9), TransferModel(1e-4, 50e9)])
@pytest.mark.parametrize("prior", [SLOS_SERVE_LINK, SHARED_MEMORY_LINK])
def test_latency_and_bandwidth_are_learnt(truth: TransferModel, prior: TransferModel) -> None:
    rng = random.Random(5)
    fit = TransferFit(prior)
    for _ in range(400):
        fit.observe(*_pull(rng, truth))
    for kv_bytes in (1e6, 3e7, 5e8):
        assert fit.model().transfer_s(kv_bytes) == pytest.approx(truth.transfer_s(kv_bytes), rel=0.15)


@pytest.mark.parametrize("coverage", [0.9, 0.95])
def test_transfer_bounds_cover_what_they_say(coverage: float) -> None:
    rng = random.Random(11)
    fit = TransferFit(SLOS_SERVE_LINK)
    for _ in range(50):
        fit.observe(*_pull(rng, SHARED_MEMORY_LINK))
    covered = 0
    for _ in range(4000):
        kv_bytes, transfer_s = _pull(rng, SHARED_MEMORY_LINK)
        covered += transfer_s <= fit.model().transfer_s(kv_bytes) * fit.margin(coverage)
        fit.observe(kv_bytes, transfer_s)
    assert covered / 4000 == pytest.approx(coverage, abs=0.02)


def test_a_new_pair_is_taken_to_be_like_those_seen() -> None:
    handovers = Handovers(SLOS_SERVE_LINK)
    assert handovers.transfer_s("p", "d", 30_000_000) == pytest.approx(0.0101)
    _feed(handovers, 100)
    for pair in (("p", "d"), ("other", "pair")):
        assert handovers.transfer_s(*pair, 30_000_000) == pytest.approx(
            SHARED_MEMORY_LINK.transfer_s(30_000_000), rel=0.15
        )
        assert handovers.transfer_bound_s(*pair, 30_000_000, 0.95) > handovers.transfer_s(*pair, 30_000_000)


def test_pairs_differ() -> None:
    handovers = Handovers(SHARED_MEMORY_LINK)
    for _ in range(60):
        handovers.observe("p", "near", 10_000_000, 0.003, 0.1, STEP_S, busy=True)
        handovers.observe("p", "far", 10_000_000, 0.030, 0.1, STEP_S, busy=True)
    assert handovers.transfer_s("p", "near", 10_000_000) == pytest.approx(0.003, rel=0.1)
    assert handovers.transfer_s("p", "far", 10_000_000) == pytest.approx(0.030, rel=0.1)


def test_a_handover_is_steps_and_a_transfer() -> None:
    handovers = Handovers(SLOS_SERVE_LINK)
    assert handovers.steps("d", busy=True) == BUSY_STEPS
    assert handovers.steps("d", busy=False) == IDLE_STEPS
    assert handovers.handover_s("p", "d", 0, STEP_S, busy=True) == pytest.approx(3 * STEP_S + 0.010)
    _feed(handovers, 300, steps=2.0)
    assert handovers.steps("d", busy=True) == pytest.approx(2.0, rel=0.1)
    assert handovers.steps("another", busy=True) == pytest.approx(2.0, rel=0.1)
    assert handovers.steps("d", busy=False) == IDLE_STEPS


def test_handover_bounds_cover_at_least_what_they_say() -> None:
    rng = random.Random(2)
    handovers = Handovers(SHARED_MEMORY_LINK)
    _feed(handovers, 50)
    covered = 0
    for _ in range(2000):
        kv_bytes, transfer_s = _pull(rng, SHARED_MEMORY_LINK)
        wait_s = transfer_s + 2.0 * STEP_S * rng.uniform(0.5, 1.5)
        covered += wait_s + STEP_S <= handovers.handover_bound_s("p", "d", kv_bytes, STEP_S, 0.95, busy=True)
        handovers.observe("p", "d", kv_bytes, transfer_s, wait_s, STEP_S, busy=True)
    assert covered / 2000 >= 0.94


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_PAIRS", 10)
    monkeypatch.setattr(transfer, "MAX_WORKERS", 5)
    handovers = Handovers(SHARED_MEMORY_LINK)
    for number in range(100):
        handovers.observe("p", f"d{number}", 1_000_000, 0.001, 0.1, STEP_S, busy=number % 2 == 0)
    assert len(handovers._pairs) == 10
    assert len(handovers._workers) == 10


def _fitted(link: TransferModel, count: int, noise: float = 0.05) -> TransferFit:
    rng, fit = random.Random(3), TransferFit(link)
    for _ in range(count):
        fit.observe(*_pull(rng, link, noise))
    return fit


def test_the_bound_is_the_same_multiple_for_caches_of_any_size() -> None:
    handovers = Handovers(SHARED_MEMORY_LINK)
    _feed(handovers, 100)
    multiples = [
        handovers.transfer_bound_s("p", "d", kv_bytes, 0.95) / handovers.transfer_s("p", "d", kv_bytes)
        for kv_bytes in (1_000, 10_000_000, 10**11)
    ]
    assert multiples == pytest.approx([multiples[0]] * 3)
    assert multiples[0] > 1.2


@pytest.mark.parametrize("factor", [5.0, 0.2])
def test_a_link_that_has_changed_for_good_is_followed_within_six_transfers(factor: float) -> None:
    fit, rng = _fitted(SHARED_MEMORY_LINK, 250), random.Random(4)
    changed = TransferModel(SHARED_MEMORY_LINK.latency_s * factor, SHARED_MEMORY_LINK.bytes_per_s / factor)
    for _ in range(SHIFT_TRANSFERS):
        fit.observe(*_pull(rng, changed, 0.05))
    assert fit.model().transfer_s(3e7) == pytest.approx(changed.transfer_s(3e7), rel=0.15)
    # What showed the change is no error of the model that follows it.
    assert fit.margin(0.99) < 1.5
    assert fit.margin(0.01) > 0.6


def test_a_wild_transfer_is_no_news_of_a_link_that_is_known() -> None:
    fit = _fitted(SHARED_MEMORY_LINK, ENOUGH)
    before_s = fit.model().transfer_s(3e7)
    fit.observe(3e7, 100 * before_s)
    assert fit.model().transfer_s(3e7) == pytest.approx(before_s, rel=0.05)


def test_the_first_transfers_over_a_link_count_in_full() -> None:
    fit = TransferFit(SLOS_SERVE_LINK)
    fit.observe(3e7, 1.0)
    fit.observe(3e7, 1.0)
    assert fit.model().transfer_s(3e7) == pytest.approx(1.0, rel=0.05)


def test_what_is_no_transfer_is_not_learnt_from() -> None:
    fit = TransferFit(SHARED_MEMORY_LINK)
    for kv_bytes, transfer_s in ((0, 0.01), (-1, 0.01), (10**6, 0.0), (10**6, math.nan), (10**6, 1e9)):
        fit.observe(kv_bytes, transfer_s)
    assert fit.transfers == 0
    assert fit.model().transfer_s(1e6) == pytest.approx(SHARED_MEMORY_LINK.transfer_s(1e6))
    fit.observe(1, 0.01)
    assert fit.transfers == 1


def test_a_pair_has_its_own_errors_once_it_was_seen_often_enough() -> None:
    rng, handovers = random.Random(6), Handovers(SHARED_MEMORY_LINK)

    def observe(target: str, noise: float, count: int) -> None:
        for _ in range(count):
            handovers.observe("p", target, *_pull(rng, SHARED_MEMORY_LINK, noise), 10.0, STEP_S, busy=True)

    def margin(target: str) -> float:
        return handovers.transfer_bound_s("p", target, 10**7, 0.9) / handovers.transfer_s("p", target, 10**7)

    observe("noisy", 0.8, 250)
    observe("steady", 0.01, ENOUGH - 1)
    assert margin("steady") == pytest.approx(margin("never seen"))
    observe("steady", 0.01, 1)
    assert margin("steady") < 0.8 * margin("never seen")
    assert set(handovers.learnt_pairs()) == {("p", "noisy"), ("p", "steady")}


def test_no_pair_is_told_from_others_before_enough_was_seen_of_any() -> None:
    handovers = Handovers(SHARED_MEMORY_LINK)
    for number in range(ENOUGH - 1):
        handovers.observe("p", f"d{number}", 10**7, 0.004, 0.1, STEP_S, busy=True)
    assert handovers.learnt_pairs() == ()
    handovers.observe("p", "d", 10**7, 0.004, 0.1, STEP_S, busy=True)
    assert handovers.learnt_pairs() == (("p", "d"),)


def test_steps_are_what_was_waited_beside_the_transfer_and_the_one_of_the_token() -> None:
    handovers = Handovers(SHARED_MEMORY_LINK)
    for _ in range(300):
        handovers.observe("p", "d", 10**7, 0.5, 0.5 + 4 * STEP_S, STEP_S, busy=True)
    assert handovers.steps("d", busy=True) == pytest.approx(5.0, rel=1e-3)
    assert handovers.handover_s("p", "d", 10**7, STEP_S, busy=True) == pytest.approx(5 * STEP_S + 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("wait_s", "decode_step_s"), [(0.4, STEP_S), (4000.0, STEP_S), (0.6, 0.0), (0.6, math.nan), (math.nan, STEP_S)]
)
def test_steps_are_not_learnt_from_what_cannot_be_a_wait(wait_s: float, decode_step_s: float) -> None:
    handovers = Handovers(SHARED_MEMORY_LINK)
    handovers.observe("p", "d", 10**7, 0.5, wait_s, decode_step_s, busy=True)
    assert handovers.steps("d", busy=True) == BUSY_STEPS
    assert handovers.transfer_s("p", "d", 10**7) > 0.1, "the transfer is learnt from all the same"


def test_a_worker_has_its_own_errors_once_it_took_over_often_enough() -> None:
    rng, handovers = random.Random(8), Handovers(SHARED_MEMORY_LINK)

    def observe(target: str, spread: float, count: int) -> None:
        for _ in range(count):
            wait_s = 0.003 + 2.0 * STEP_S * rng.uniform(1 - spread, 1 + spread)
            handovers.observe("p", target, 10**7, 0.003, wait_s, STEP_S, busy=True)

    def margin(target: str, *, busy: bool = True) -> float:
        return handovers.steps_bound(target, 0.9, busy=busy) / handovers.steps(target, busy=busy)

    untaught = margin("steady", busy=False)
    observe("noisy", 0.99, 300)
    observe("steady", 0.0, ENOUGH - 1)
    assert margin("steady") == pytest.approx(margin("never seen"))
    observe("steady", 0.0, 1)
    assert margin("steady") < 0.95 * margin("never seen")
    assert margin("steady", busy=False) == untaught, "idle workers are others"


def test_one_wild_hand_over_moves_the_expected_steps_little() -> None:
    fit = HandoverFit(3.0)
    for _ in range(250):
        fit.observe(3.0)
    fit.observe(1000.0)
    assert fit.steps == pytest.approx(3.0, rel=0.01)
    fit.observe(0.0)
    assert fit.steps == pytest.approx(3.0, rel=0.01)
    assert fit.handovers == 252


def test_the_pair_not_used_for_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_PAIRS", 2)
    handovers = Handovers(SHARED_MEMORY_LINK)
    for target in ("x",) * ENOUGH + ("a", "b", "a", "c"):
        handovers.observe("p", target, 10**7, 0.004, 0.1, STEP_S, busy=True)
    assert set(handovers.learnt_pairs()) == {("p", "a"), ("p", "c")}


def test_a_link_that_changes_little_by_little_is_followed() -> None:
    """So slowly that no few transfers show it."""
    rng = random.Random(3)
    fit = TransferFit(SHARED_MEMORY_LINK)
    errors = []
    for index in range(3000):
        truth = TransferModel(0.3e-3, 3.6e9 * 0.9995**index)
        fit.observe(*_pull(rng, truth))
        errors.append(abs(fit.model().bytes_per_s / truth.bytes_per_s - 1.0))
    assert sum(errors[1000:]) / 2000 < 0.1
    assert max(errors[1000:]) < 0.25


@given(
    st.lists(
        st.tuples(st.integers(-5, 10**12), st.floats(allow_nan=True), st.floats(allow_nan=True), st.floats()),
        max_size=40,
    )
)
@settings(max_examples=50)
def test_no_report_breaks_it(reports: list[tuple[int, float, float, float]]) -> None:
    handovers = Handovers(SHARED_MEMORY_LINK)
    for kv_bytes, transfer_s, wait_s, step_s in reports:
        handovers.observe("p", "d", kv_bytes, transfer_s, wait_s, step_s, busy=True)
    assert handovers.handover_bound_s("p", "d", 1_000_000, STEP_S, 0.95, busy=True) >= 0
    assert math.isfinite(handovers.transfer_s("p", "d", 1_000_000))


@pytest.mark.parametrize(("latency_s", "bytes_per_s"), [(-1.0, 1e9), (math.nan, 1e9), (0.0, 0.0), (0.0, math.nan)])
def test_no_impossible_links(latency_s: float, bytes_per_s: float) -> None:
    with pytest.raises(ValueError, match=r"_s must"):
        TransferModel(latency_s, bytes_per_s)
