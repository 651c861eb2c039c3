"""Promises kept inside the engine: composed steps, preemption and drafting on real vLLM, against its own choices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.engine.protocol import FinishReason, SamplingOptions
from services.engine.step_recording import read_steps
from services.slo.performance import PerformanceModel
from tests.engine.conftest import engine_config
from tests.engine.vllm_harness import EngineHarness, Pair, greedy
from tests.support.eventually import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LONG, STREAM_TOKENS = 2000, 60


def _harness(loop: Any, model_dir: Path, **config: Any) -> Iterator[EngineHarness]:
    harness = EngineHarness(loop, model_dir, engine_config(1, kv_cache_bytes=500 * 2**20, **config), "scheduling")
    yield harness
    harness.shutdown()


@pytest.fixture(scope="module")
def slo(decode: EngineHarness) -> EngineHarness:
    """The decode engine of other tests: no prompt of theirs begins like one here, so its prefix cache is of no help."""
    return decode


@pytest.fixture(scope="module")
def stock(loop: Any, model_dir: Path) -> Iterator[EngineHarness]:
    yield from _harness(loop, model_dir, scheduling="stock", warm_up=False)


@pytest.fixture(scope="module")
def drafting(loop: Any, model_dir: Path) -> Iterator[EngineHarness]:
    yield from _harness(loop, model_dir, draft_tokens=6)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps") / "steps.jsonl"


@pytest.fixture(scope="module")
def cramped(loop: Any, model_dir: Path, recording: Path) -> Iterator[EngineHarness]:
    """Room for about 1,300 tokens."""
    small = {"kv_cache_bytes": 60 * 2**20, "max_model_len": 1280, "prefix_caching": False}
    config = engine_config(1, record_steps=str(recording), **small)
    harness = EngineHarness(loop, model_dir, config, "cramped")
    yield harness
    harness.shutdown()


def step_s(harness: EngineHarness) -> float:
    """Of a decode step, as this machine's warm-up found it."""
    return PerformanceModel(harness.facts.performance).decode_step_s(2, 400)


def beside_a_stream(harness: EngineHarness, text: list[int]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Texts of a promised stream and of a long prompt that comes after it; prompt tokens in steps that served both."""
    began = len(harness.steps)
    tpot_s = 3 * step_s(harness)
    stream = harness.submit(text[100:200], greedy(STREAM_TOKENS, ignore_eos=True), deadline_in_s=60.0, tpot_s=tpot_s)
    wait_until(lambda: len(harness.answers[stream].tokens) > 5, "a running stream")
    long = harness.submit(text[3000 : 3000 + LONG], greedy(8), deadline_in_s=60.0, tpot_s=60.0)
    answers = [harness.wait(stream), harness.wait(long)]
    so_far = answers[1].prefilled
    assert so_far == sorted(set(so_far)), "each report says more than the one before"
    assert all(0 < tokens < LONG for tokens in so_far)
    shapes = [step.shape for step in harness.steps[began:]]
    return [answer.tokens for answer in answers], [
        shape.prefill_tokens for shape in shapes if shape.decode_requests and shape.prefill_tokens
    ]


def test_long_prompt_does_not_stall_a_stream(slo: EngineHarness, stock: EngineHarness, text: list[int]) -> None:
    expected, whole = beside_a_stream(stock, text)
    texts, chunks = beside_a_stream(slo, text)

    assert texts == expected
    assert max(whole) >= LONG / 2, "the stock engine did not stall the stream: this test shows nothing"
    assert max(chunks) <= max(whole) / 4
    assert len(slo.answers[max(slo.answers, key=lambda name: len(slo.answers[name].prefilled))].prefilled) > 3
    assert len(chunks) >= 5, "the prompt waited for the stream's end instead of sharing steps with it"


def test_text_is_that_of_the_stock_engine(slo: EngineHarness, stock: EngineHarness, text: list[int]) -> None:
    """Whatever is promised, however the prompts are cut."""
    prompts = [text[40 * index : 40 * index + length] for index, length in enumerate((1, 31, 32, 33, 150, 600, 1500))]
    expected = [stock.generate(prompt, greedy(10)).tokens for prompt in prompts]
    promises: list[dict[str, Any]] = [
        {"deadline_in_s": 60.0, "tpot_s": 2 * step_s(slo)},
        {"best_effort": True},
        {"deadline_in_s": -3.0, "tpot_s": step_s(slo) / 10},
        {"tpot_s": 0.5},
        {"deadline_in_s": 5.0},
        {},
        {"deadline_in_s": 0.0, "tpot_s": 1e-9},
    ]
    submitted = [slo.submit(prompt, greedy(10), **promise) for prompt, promise in zip(prompts, promises, strict=True)]
    assert [slo.wait(request_id).tokens for request_id in submitted] == expected
    slo.wait_free()


def figures(harness: EngineHarness) -> Counter[str]:
    return Counter(harness.scheduling_figures())


@pytest.mark.parametrize(
    "promise",
    [{"tpot_s": -1.0}, {"tpot_s": 0.0}, {"tpot_s": math.nan}, {"deadline_in_s": math.inf}, {"tpot_s": "soon"}],
)
def test_malformed_contract_is_best_effort(slo: EngineHarness, text: list[int], promise: dict[str, Any]) -> None:
    before = figures(slo)["contracts_malformed"]
    answer = slo.generate(text[:40], greedy(4), **promise)
    assert answer.finish_reason is FinishReason.LENGTH
    assert figures(slo)["contracts_malformed"] == before + 1


def test_clock_that_goes_backwards_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.engine.vllm.core import composed_scheduler

    scheduler = object.__new__(composed_scheduler.ComposedScheduler)
    scheduler._now_s = 0.0
    times = iter((5.0, 3.0, 6.0))
    monkeypatch.setattr(composed_scheduler, "time", SimpleNamespace(monotonic=lambda: next(times)))
    assert [scheduler._clock() for _ in range(3)] == [5.0, 5.0, 6.0]


def test_each_step_is_reported_with_what_was_expected_of_it(slo: EngineHarness, text: list[int]) -> None:
    began = len(slo.steps)
    slo.generate(text[9000 : 9000 + LONG], greedy(6), deadline_in_s=60.0)
    steps = [step for step in slo.steps[began:] if step.shape.tokens]
    # A long prompt is cut, since no step is longer than some of the shortest; the last piece may be small.
    longest = max(step.shape.prefill_tokens for step in steps)
    prefills = [step.scheduling for step in steps if step.shape.prefill_tokens > longest / 2]
    decodes = [step.scheduling for step in steps if not step.shape.prefill_tokens]
    assert prefills
    assert decodes
    assert min(step.predicted_s for step in prefills) > 2 * max(step.predicted_s for step in decodes)
    assert all(0 < step.predicted_s <= step.bound_s for step in (*prefills, *decodes))
    assert all(step.compose_s > 0 for step in prefills)


def test_late_request_is_served_and_stops_nobody(slo: EngineHarness, text: list[int]) -> None:
    """A deadline that passed before the request arrived."""
    late = slo.submit(text[5000 : 5000 + LONG], greedy(4), deadline_in_s=-100.0, tpot_s=step_s(slo))
    prompt = slo.submit(text[800:900], greedy(4), deadline_in_s=60.0, tpot_s=60.0)
    assert slo.wait(prompt).finish_reason is FinishReason.LENGTH
    assert slo.wait(late).finish_reason is FinishReason.LENGTH


class TestPreemption:
    def test_best_effort_makes_room_and_goes_on(self, cramped: EngineHarness, text: list[int]) -> None:
        """Its memory goes to promised work; its text goes on as if nothing had happened."""
        victim_prompt, prompt = text[1000:1900], text[2500:3200]
        expected = [
            cramped.generate(victim_prompt, greedy(80, ignore_eos=True)).tokens,
            cramped.generate(prompt, greedy(8)).tokens,
        ]
        before = figures(cramped)["preempted"]

        victim = cramped.submit(victim_prompt, greedy(80, ignore_eos=True), best_effort=True)
        wait_until(lambda: len(cramped.answers[victim].tokens) > 5, "a victim")
        promised = cramped.submit(prompt, greedy(8), deadline_in_s=20.0, tpot_s=1.0)
        answers = [cramped.answers[victim], cramped.wait(promised)]
        unfinished = not answers[0].ended
        cramped.wait(victim)

        assert [answer.tokens for answer in answers] == expected
        assert unfinished, "the promised request waited for the end of best effort"
        assert figures(cramped)["preempted"] > before
        cramped.wait_free()

    def test_promised_work_is_not_taken_from(self, cramped: EngineHarness, text: list[int]) -> None:
        before = figures(cramped)["preempted"]
        first = cramped.submit(text[1000:1900], greedy(40, ignore_eos=True), deadline_in_s=60.0, tpot_s=5.0)
        wait_until(lambda: len(cramped.answers[first].tokens) > 5, "a running request")
        second = cramped.submit(text[2500:3200], greedy(8), deadline_in_s=60.0, tpot_s=5.0)
        for request_id in (first, second):
            assert cramped.wait(request_id).finish_reason is FinishReason.LENGTH
        assert figures(cramped)["preempted"] == before

    def test_recorded_steps_are_composed_the_same_again(self, cramped: EngineHarness, recording: Path) -> None:
        cramped.wait_free()
        lines = recording.read_text().splitlines(keepends=True)
        # What is not flushed yet ends in the middle of a line.
        whole = recording.with_name("whole.jsonl")
        whole.write_text("".join(lines[:-1]))
        steps = list(read_steps(whole))
        assert any(recorded.step.composition.preempted for recorded in steps)
        assert all(recorded.step.again() == recorded.step.composition for recorded in steps)


class TestDrafting:
    """An engine that drafts gives the text of one that does not."""

    def test_greedy_text(self, drafting: EngineHarness, stock: EngineHarness, text: list[int]) -> None:
        repetitive = text[600:680] * 4
        prompts = [repetitive, text[900:1000], text[2000:2700], text[300:400] * 3]
        expected = [stock.generate(prompt, greedy(60, ignore_eos=True)).tokens for prompt in prompts]
        before = figures(drafting)
        submitted = [drafting.submit(prompt, greedy(60, ignore_eos=True), tpot_s=1.0) for prompt in prompts]
        assert [drafting.wait(request_id).tokens for request_id in submitted] == expected
        after = figures(drafting)
        assert after["accepted"] - before["accepted"] > 20, "nothing was drafted: this test shows nothing"
        drafting.wait_free()

    @pytest.mark.parametrize(
        "sampling",
        [
            greedy(40, ignore_eos=True, logit_bias={260: 4.0, 29: -9.0}),
            greedy(40, ignore_eos=True, presence_penalty=0.9, frequency_penalty=0.4, repetition_penalty=1.1),
            greedy(40, min_tokens=40),
            SamplingOptions(max_tokens=40, temperature=0.8, seed=7, ignore_eos=True),
            SamplingOptions(max_tokens=40, temperature=0.8, min_p=0.2, seed=8, ignore_eos=True),
        ],
        ids=["logit_bias", "penalties", "min_tokens", "seed", "min_p"],
    )
    def test_options(
        self, drafting: EngineHarness, stock: EngineHarness, text: list[int], sampling: SamplingOptions
    ) -> None:
        """Beside a request that drafts, so that both kinds are in one step."""
        prompt = text[600:680] * 4
        expected = stock.generate(prompt, sampling).tokens
        beside = drafting.submit(text[300:400] * 3, greedy(60, ignore_eos=True))
        assert drafting.generate(prompt, sampling).tokens == expected
        drafting.wait(beside)

    def test_penalties_of_carried_output(self, drafting: EngineHarness, stock: EngineHarness, text: list[int]) -> None:
        sampling = greedy(30, ignore_eos=True, presence_penalty=1.2, frequency_penalty=0.3)
        prompt = text[600:680] * 3
        expected = stock.generate(prompt, sampling).tokens
        rest = drafting.generate([*prompt, *expected[:9]], sampling, generated_tokens=9).tokens
        assert rest == expected[9:]

    def test_hand_over(
        self, drafting: EngineHarness, slo: EngineHarness, stock: EngineHarness, text: list[int]
    ) -> None:
        """A request whose KV cache comes from elsewhere drafts from its first step."""
        prompt = text[600:680] * 4
        expected = stock.generate(prompt, greedy(40, ignore_eos=True)).tokens
        tokens, rest = Pair(slo, drafting).hand_over(prompt, greedy(40, ignore_eos=True))
        assert tokens == expected
        assert rest.timings.kv_recompute_reason == ""
