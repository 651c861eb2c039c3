"""Requests of different salts find nothing of each other in vLLM's prefix cache."""

from __future__ import annotations

import pytest

from tests.engine.vllm_harness import EngineHarness, Pair, greedy

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

OURS, THEIRS = "a" * 32, "b" * 32
PROMPT_TOKENS, BLOCK_TOKENS = 200, 32
CACHED_TOKENS = PROMPT_TOKENS // BLOCK_TOKENS * BLOCK_TOKENS


def found(engine: EngineHarness, prompt: list[int], salt: str) -> tuple[int, int, tuple[int, ...]]:
    """Return how many tokens were found in the cache, how many were computed, and the output."""
    before = len(engine.steps)
    answer = engine.generate(prompt, greedy(4), cache_salt=salt)
    engine.wait_free()
    computed = sum(step.shape.prefill_tokens for step in engine.steps[before:])
    return answer.timings.cached_tokens, computed, answer.tokens


def test_a_tenant_can_tell_neither_from_counts_nor_from_work_what_another_has_cached(
    prefill: EngineHarness, text: list[int]
) -> None:
    prompt = text[35_000 : 35_000 + PROMPT_TOKENS]
    first = found(prefill, prompt, OURS)
    assert first[:2] == (0, PROMPT_TOKENS)
    assert found(prefill, prompt, OURS) == (CACHED_TOKENS, PROMPT_TOKENS - CACHED_TOKENS, first[2])
    assert found(prefill, prompt, THEIRS) == first, "as if nobody had sent it before"
    assert found(prefill, prompt, "") == first
    assert found(prefill, prompt, THEIRS)[0] == CACHED_TOKENS


def test_a_hand_over_keeps_text_and_salt(pair: Pair, text: list[int]) -> None:
    prompt = text[36_000 : 36_000 + PROMPT_TOKENS]
    sampling = greedy(12)
    expected = pair.decode.generate(prompt, sampling, cache_salt=THEIRS).tokens
    for _ in range(2):
        first = pair.prefill.generate(prompt, sampling, export_kv=True, cache_salt=OURS)
        rest = pair.decode.generate(
            [*prompt, *first.tokens], sampling, generated_tokens=1, kv_source=first.kv, cache_salt=OURS
        )
        assert first.tokens + rest.tokens == expected
        assert rest.timings.kv_recompute_reason == ""
        pair.prefill.wait_free()
    assert found(pair.decode, prompt, OURS)[0] == CACHED_TOKENS, "what was pulled is cached for its own tenant"
    assert found(pair.decode, prompt, "c" * 32)[0] == 0
    assert found(pair.prefill, prompt, THEIRS)[0] == 0
