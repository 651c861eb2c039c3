"""A hand-over gives the text of a single engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from services.engine.kv.handle import LeaseOutcome
from services.engine.protocol import SamplingOptions
from tests.engine.vllm_harness import EngineHarness, Pair, greedy

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LENGTHS = (1, 15, 16, 17, 127, 128, 129, 1000, 2000)
OUTPUT_TOKENS = 12


def prompt_of(text: list[int], index: int, length: int) -> list[int]:
    """Different prompts have no common beginning: nothing is answered from a prefix cache."""
    start = index * 2100 + length % 7
    return text[start : start + length]


@pytest.mark.parametrize("length", LENGTHS)
def test_alone_equals_a_single_engine(pair: Pair, lone: EngineHarness, text: list[int], length: int) -> None:
    prompt = prompt_of(text, LENGTHS.index(length), length)
    expected = lone.generate(prompt, greedy(OUTPUT_TOKENS)).tokens

    tokens, rest = pair.hand_over(prompt, greedy(OUTPUT_TOKENS))

    assert tokens == expected
    assert rest.timings.kv_recompute_reason == ""
    assert rest.timings.kv_pull is not None
    assert rest.timings.kv_pull.kv_bytes > 0
    assert rest.timings.kv_pull.transfer_s > 0
    pair.decode.wait_free()
    pair.prefill.wait_free()


def test_handle_describes_what_is_held(pair: Pair, text: list[int]) -> None:
    prompt = text[30_000:30_100]
    handle = pair.export(prompt, greedy(4)).kv
    facts = pair.prefill.facts
    assert handle.tokens == 100
    assert handle.kv_bytes == 4 * 32 * facts.kv_bytes_per_token
    assert handle.engine_epoch == facts.engine_epoch
    assert handle.worker_id == "prefill-0"
    assert 0 < handle.lease_remaining_s <= facts.kv_lease_s
    assert pair.prefill.engine.load().kv_blocks_leased == 4
    pair.prefill.release_kv(handle.lease_id)
    pair.prefill.wait_free()


def test_sixteen_at_once_equal_a_single_engine(pair: Pair, lone: EngineHarness, text: list[int]) -> None:
    lengths = (*LENGTHS, 33, 64, 200, 257, 500, 31, 96)
    prompts = [prompt_of(text, index, length + 3) for index, length in enumerate(lengths)]
    expected = [lone.generate(prompt, greedy(OUTPUT_TOKENS)).tokens for prompt in prompts]

    prefills = [pair.prefill.submit(prompt, greedy(OUTPUT_TOKENS), export_kv=True) for prompt in prompts]
    decodes = []
    for prompt, request_id in zip(prompts, prefills, strict=True):
        first = pair.prefill.wait(request_id)
        continuation = pair.decode.submit(
            [*prompt, *first.tokens], greedy(OUTPUT_TOKENS), generated_tokens=1, kv_source=first.kv
        )
        decodes.append((first, continuation))

    answers = [(first, pair.decode.wait(continuation)) for first, continuation in decodes]
    assert [first.tokens + rest.tokens for first, rest in answers] == expected
    assert [rest.timings.kv_recompute_reason for _, rest in answers] == [""] * 16
    pair.prefill.wait_free()
    assert {pair.prefill.leases[first.kv.lease_id] for first, _ in answers} <= {
        LeaseOutcome.PULLED,
        LeaseOutcome.RELEASED,
    }


def test_prefix_cached_on_the_decode_side(pair: Pair, text: list[int]) -> None:
    """A second prompt with the same beginning pulls only what is missing, an equal one nothing at all."""
    beginning = text[25_000:25_320]
    longer = [*beginning, *text[26_000:26_200]]
    pair.hand_over(beginning, greedy(4))
    expected = pair.prefill.generate(longer, greedy(8)).tokens

    tokens, partly = pair.hand_over(longer, greedy(8))
    assert tokens == expected
    assert partly.timings.cached_tokens == 320
    assert partly.timings.kv_pull is not None
    block_bytes = 32 * pair.decode.facts.kv_bytes_per_token
    assert partly.timings.kv_pull.kv_bytes == 7 * block_bytes

    tokens, wholly = pair.hand_over(longer[:512], greedy(8))
    assert wholly.timings.kv_recompute_reason == ""
    assert wholly.timings.kv_pull is None
    pair.prefill.wait_free()


def test_seeded_text_is_reproducible(pair: Pair, text: list[int]) -> None:
    sampling = SamplingOptions(max_tokens=16, temperature=1.0, top_p=0.95, seed=1234)
    prompt = text[27_000:27_060]
    first, _ = pair.hand_over(prompt, sampling)
    second, _ = pair.hand_over(prompt, sampling)
    other, _ = pair.hand_over(prompt, SamplingOptions(max_tokens=16, temperature=1.0, top_p=0.95, seed=1235))
    assert first == second
    assert first != other


@pytest.mark.parametrize(("presence", "frequency", "repetition"), [(1.5, 0.0, 1.0), (0.0, 0.7, 1.0), (0.9, 0.4, 1.2)])
def test_penalties_count_tokens_generated_elsewhere(
    pair: Pair, lone: EngineHarness, model_dir: Path, presence: float, frequency: float, repetition: float
) -> None:
    penalties = {
        "presence_penalty": presence,
        "frequency_penalty": frequency,
        "repetition_penalty": repetition,
        "ignore_eos": True,
    }
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    prompt = tokenizer.encode("The sun is hot. The sun is hot. The sun is hot. The sun").ids
    expected = lone.generate(prompt, greedy(24, **penalties)).tokens

    handed_over, _ = pair.hand_over(prompt, greedy(24, **penalties))
    later = pair.decode.generate([*prompt, *expected[:9]], greedy(24, **penalties), generated_tokens=9).tokens
    as_prompt = lone.generate([*prompt, *expected[:9]], greedy(15, **penalties)).tokens

    assert handed_over == expected
    assert later == expected[9:]
    assert as_prompt != expected[9:], "this text does not show the difference"


def test_logprobs_of_chosen_and_likeliest(pair: Pair, text: list[int]) -> None:
    answer = pair.decode.generate(text[400:420], greedy(3, logprobs=2))
    entries = [token for output in answer.outputs for token in output.logprobs]
    assert len(entries) == 3
    for token_id, (chosen, likeliest, second) in zip(answer.tokens, entries, strict=True):
        assert (chosen.token_id, chosen.rank) == (token_id, 1)
        assert likeliest.token_id == token_id
        assert likeliest.logprob >= second.logprob
