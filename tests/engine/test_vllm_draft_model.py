"""A draft model on real vLLM. The model drafts for itself: whatever it drafts is right if both KV caches are."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import engine_config
from tests.engine.vllm_harness import EngineHarness, Pair, greedy

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SAMPLING = greedy(40, ignore_eos=True)


@pytest.fixture(scope="module")
def drafting(loop: Any, model_dir: Path) -> Iterator[Pair]:
    options: dict[str, Any] = {"draft_model": str(model_dir), "draft_tokens": 4, "warm_up": False}
    with contextlib.ExitStack() as stack:
        engines = []
        for core in range(2):
            engines.append(
                EngineHarness(
                    loop, model_dir, engine_config(core, kv_cache_bytes=500 * 2**20, **options), f"drafting-{core}"
                )
            )
            stack.callback(engines[-1].shutdown)
        yield Pair(*engines)


@contextlib.contextmanager
def drafts_are_right(engine: EngineHarness) -> Iterator[None]:
    before = Counter(engine.scheduling_figures())
    yield
    after = engine.scheduling_figures()
    drafted, accepted = (after[key] - before[key] for key in ("drafted", "accepted"))
    assert accepted > 20, "nothing was drafted: this test shows nothing"
    assert accepted > 0.9 * drafted


def test_greedy_text(drafting: Pair, prefill: EngineHarness, text: list[int]) -> None:
    prompts = [text[900:1000], text[2000:2700], text[300:400]]
    expected = [prefill.generate(prompt, SAMPLING).tokens for prompt in prompts]
    with drafts_are_right(drafting.decode):
        submitted = [drafting.decode.submit(prompt, SAMPLING, tpot_s=1.0) for prompt in prompts]
        assert [drafting.decode.wait(request_id).tokens for request_id in submitted] == expected


def test_the_draft_models_kv_cache_is_handed_over(drafting: Pair, prefill: EngineHarness, text: list[int]) -> None:
    prompt = text[4000:4700]
    expected = prefill.generate(prompt, SAMPLING).tokens
    with drafts_are_right(drafting.decode):
        tokens, rest = drafting.hand_over(prompt, SAMPLING)
    assert tokens == expected
    assert rest.timings.kv_recompute_reason == ""


def test_engines_without_it_are_told_apart(drafting: Pair, prefill: EngineHarness, text: list[int]) -> None:
    prompt = text[5000:5300]
    expected = prefill.generate(prompt, SAMPLING).tokens
    tokens, rest = Pair(prefill, drafting.decode).hand_over(prompt, SAMPLING)
    assert tokens == expected
    assert "kv_layout" in rest.timings.kv_recompute_reason
    prefill.wait_free()
