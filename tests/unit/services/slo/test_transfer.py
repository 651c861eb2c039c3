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
    IDLE_STEPS,
    SHARED_MEMORY_LINK,
    SLOS_SERVE_LINK,
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
