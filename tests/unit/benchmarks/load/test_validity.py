"""A cluster made up from known figures: what is fitted to it must be those, and its simulation must be like it."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from benchmarks.load.exchange import Answer, Claims, End, Exchange, Verdict
from benchmarks.load.schedule import Planned
from benchmarks.requested_slo import RequestedSlo
from benchmarks.validity import simulate
from benchmarks.validity_cluster import Measured
from benchmarks.validity_fit import DECODE, PREFILL, Step, TooLittleError, fitted, steps_of
from benchmarks.validity_report import EVERYTHING, ClientOutcome, comparisons, markdown, plot, step_ratio
from services.engine.step_recording import StepRecorder
from services.slo.composer import ComposerPolicy, Composition, Limits
from services.slo.composer.recorded_step import ComposedStep
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.performance import SMOLLM2_135M_ONE_CORE, PerformanceModel, StepShape

TRUTH = PerformanceModel(SMOLLM2_135M_ONE_CORE)
REQUEST_S, RELAY_S, DELIVERY_S, BETWEEN_S = 0.004, 0.009, 0.003, 0.002
LINK_LATENCY_S, LINK_BYTES_PER_S = 0.5e-3, 3e9
CONTRACT = Contract(PrefillTarget(ttft_s=10.0), (DecodeTarget(0.5),))


def prompt_shape(tokens: int) -> StepShape:
    return StepShape(prefill_requests=1, prefill_tokens=tokens, prefill_attention_pairs=tokens * tokens / 2)


def lone_requests() -> tuple[list[Exchange], dict[str, list[Step]]]:
    """Twenty requests, each alone and short enough for one step, as a cluster with these figures would serve them."""
    rng = random.Random(0)
    exchanges, steps = [], {PREFILL: list[Step](), DECODE: list[Step]()}
    for number in range(20):
        prompt, outputs = rng.randrange(50, 600), 12
        exchange = Exchange(
            Planned(number, 3.0 * number, RequestedSlo("chatbot"), prompt, outputs), 3.0 * number, 3.0 * number
        )
        exchange.answered(Answer(CONTRACT, Verdict.GUARANTEED))
        at_s = exchange.sent_s + REQUEST_S

        def step(worker: str, shape: StepShape, began_s: float) -> float:
            took_s = TRUTH.step_s(shape) * rng.gauss(1.0, 0.01) - BETWEEN_S
            steps[worker].append(Step(began_s, shape, took_s, took_s + BETWEEN_S))
            return began_s + took_s

        at_s = step(PREFILL, prompt_shape(prompt), at_s)
        exchange.tokens(1, "", at_s + DELIVERY_S)
        kv_bytes = 23_040 * prompt
        transfer_s = LINK_LATENCY_S + kv_bytes / LINK_BYTES_PER_S
        at_s += RELAY_S + transfer_s
        for token in range(1, outputs):
            shape = StepShape(decode_requests=1, decode_tokens=1, decode_context_tokens=prompt + token)
            ended_s = step(DECODE, shape, at_s)
            exchange.tokens(1, "", ended_s + DELIVERY_S)
            at_s = ended_s + BETWEEN_S
        exchange.end, exchange.ended_s = End.COMPLETE, exchange.arrivals[-1][0]
        exchange.claims = Claims(
            kept=True, missed="", ttft_s=0.0, tpot_s=0.0, phases_s={}, kv_bytes=kv_bytes, kv_transfer_s=transfer_s
        )
        exchanges.append(exchange)
    return exchanges, steps


def test_what_is_fitted_is_what_there_was() -> None:
    exchanges, steps = lone_requests()
    learnt = fitted(steps, exchanges, [])
    assert learnt.request_delay_s == pytest.approx(REQUEST_S, abs=1e-4)
    assert learnt.relay_delay_s == pytest.approx(RELAY_S - BETWEEN_S, abs=1e-4)
    assert learnt.delivery_s == pytest.approx(DELIVERY_S - BETWEEN_S, abs=1e-4)
    assert learnt.between_steps_s == pytest.approx(BETWEEN_S, abs=1e-4)
    assert learnt.noise.alone == pytest.approx(0.01, abs=0.01)
    assert learnt.latency_s + 20e6 / learnt.bytes_per_s == pytest.approx(
        LINK_LATENCY_S + 20e6 / LINK_BYTES_PER_S, rel=0.1
    )
    for shape in (prompt_shape(700), StepShape(decode_requests=1, decode_tokens=1, decode_context_tokens=500)):
        assert learnt.model.step_s(shape) == pytest.approx(TRUTH.step_s(shape), rel=0.03)
    assert step_ratio(steps[DECODE], learnt.model) == pytest.approx(1.0, abs=0.02)
    with pytest.raises(TooLittleError):
        fitted({PREFILL: [], DECODE: []}, exchanges, [])


def test_a_simulation_of_it_is_like_it(tmp_path: Path) -> None:
    exchanges, steps = lone_requests()
    learnt = fitted(steps, exchanges, [])
    real = Measured((), (), tuple(exchanges), 0.0, steps, 20_000, Limits(2048, 64, 32))
    simulated = simulate(real, learnt, seed=1)
    outcomes = [
        ClientOutcome(
            "chatbot", a[0][0] - e.sent_s, (a[-1][0] - a[0][0]) / 11, a[-1][0] - e.sent_s, RELAY_S, True, True
        )
        for e in exchanges
        for a in (e.arrivals,)
    ]
    assert len(simulated) == len(outcomes)
    assert all(outcome.guaranteed and outcome.kept for outcome in simulated)
    found = comparisons(outcomes, simulated, simulated)
    together = {(one.metric, one.percentile): one for one in found if one.profile == EVERYTHING}
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        assert together[metric, 50].ratio == pytest.approx(1.0, abs=0.05)
        assert together[metric, 90].close
    assert "| all | TTFT | p50 |" in markdown(found, learnt, 1.0, "note")
    plot(outcomes, simulated, tmp_path / "v.svg")
    assert (tmp_path / "v.svg").read_text().startswith("<?xml")


def test_time_between_steps_belongs_to_the_first_of_them(tmp_path: Path) -> None:
    shape = StepShape(decode_requests=1, decode_tokens=1, decode_context_tokens=10)
    composition = Composition({}, (), (), (), math.inf, 0.04, shape)
    with StepRecorder(tmp_path / "w.jsonl") as recorder:
        for began_s in (0.0, 0.043, 0.086, 5.0):
            recorder.begin(ComposedStep((), 10, TRUTH, Limits(10, 10, 10), ComposerPolicy(), began_s, composition))
            recorder.end(0.04)
    cycles = [step.cycle_s for step in steps_of(tmp_path / "w.jsonl")]
    assert cycles == pytest.approx([0.043, 0.043, 0.043, 0.043]), "idle time is nobody's"
