"""Made-up tokens depend on the context and the sampling options alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.emulated.tokens import TokenStream, Vocabulary, context_digest
from services.engine.protocol import FinishReason, SamplingOptions
from tests.unit.services.engine.emulated.emulated_support import prompt

VOCABULARY = Vocabulary(size=49_152, eos_token_id=2, special_tokens=17, mean_output_tokens=256)
FREE = SamplingOptions(max_tokens=10_000, ignore_eos=True)


def stream(
    sampling: SamplingOptions,
    token_ids: tuple[int, ...] = (100, 200),
    generated: int = 0,
    vocabulary: Vocabulary = VOCABULARY,
    max_context_tokens: int = 100_000,
) -> TokenStream:
    return TokenStream(vocabulary, sampling, token_ids, generated, max_context_tokens)


def draw(source: TokenStream, count: int) -> list[int]:
    return [source.draw().token_id for _ in range(count)]


@given(
    st.lists(st.integers(0, 49_151), min_size=1, max_size=40),
    st.integers(0, 20),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 5),
    st.integers(0, 30),
)
def test_output_goes_on_the_same_way_on_another_engine(
    token_ids: list[int], moved_after: int, temperature: float, seed: int, min_tokens: int
) -> None:
    sampling = replace(FREE, temperature=temperature, seed=seed, min_tokens=min_tokens, ignore_eos=False)
    context = tuple(token_ids)
    whole = draw(stream(sampling, context), 25)
    moved = stream(sampling, context + tuple(whole[:moved_after]), moved_after)
    assert draw(moved, 25 - moved_after) == whole[moved_after:]


def test_every_token_of_the_context_matters() -> None:
    assert draw(stream(FREE, (100, 200, 300)), 5) != draw(stream(FREE, (101, 200, 300)), 5)


def test_seed_matters_above_temperature_0_only() -> None:
    def drawn(temperature: float, seed: int | None) -> list[int]:
        return draw(stream(replace(FREE, temperature=temperature, seed=seed)), 5)

    greedy = drawn(0.0, 1)
    assert greedy == drawn(0.0, 2)
    assert greedy == drawn(1.0, None)
    assert drawn(1.0, 1) != drawn(1.0, 2)
    assert drawn(1.0, 1) == drawn(1.0, 1)


def test_plain_tokens_are_inside_the_vocabulary_and_not_special() -> None:
    tokens = draw(stream(FREE), 5000)
    assert min(tokens) >= 17
    assert max(tokens) < 49_152
    assert len(set(tokens)) > 4000


def test_end_of_sequence_comes_now_and_then_and_stops() -> None:
    lengths = []
    for salt in range(300):
        source = stream(replace(FREE, ignore_eos=False), prompt(5, salt))
        while (token := source.draw()).finish_reason is None:
            assert token.token_id != 2
        assert (token.token_id, token.finish_reason, token.stop_token_id) == (2, FinishReason.STOP, 2)
        lengths.append(source.generated_tokens)
    assert 200 < sum(lengths) / len(lengths) < 320


def test_no_stop_before_min_tokens() -> None:
    often = replace(VOCABULARY, mean_output_tokens=1)
    source = stream(SamplingOptions(max_tokens=50, min_tokens=3), vocabulary=often)
    draws = [source.draw() for _ in range(4)]
    assert [drawn.finish_reason for drawn in draws] == [None, None, None, FinishReason.STOP]
    assert 2 not in [drawn.token_id for drawn in draws[:3]]


def test_min_tokens_counts_what_another_engine_generated() -> None:
    often = replace(VOCABULARY, mean_output_tokens=1)
    source = stream(SamplingOptions(max_tokens=50, min_tokens=3), (100, 200, 300, 400), 3, vocabulary=often)
    assert source.draw().finish_reason is FinishReason.STOP


def test_stop_tokens_stop_and_are_avoided_before_min_tokens() -> None:
    third = draw(stream(FREE), 3)[2]
    source = stream(replace(FREE, stop_token_ids=(third,)))
    draws = [source.draw() for _ in range(3)]
    assert [drawn.finish_reason for drawn in draws] == [None, None, FinishReason.STOP]
    assert draws[2].stop_token_id == third
    avoiding = draw(stream(replace(FREE, stop_token_ids=(third,), min_tokens=3)), 3)
    assert avoiding[2] != third


def test_stop_tokens_that_leave_no_other_choice_do_not_hang() -> None:
    tiny = Vocabulary(size=5, eos_token_id=0, special_tokens=3, mean_output_tokens=256)
    sampling = SamplingOptions(max_tokens=3, min_tokens=3, stop_token_ids=(3, 4))
    source = stream(sampling, (1,), vocabulary=tiny)
    assert [source.draw().finish_reason for _ in range(3)] == [None, None, FinishReason.LENGTH]


@pytest.mark.parametrize(
    ("max_tokens", "max_context_tokens", "expected"), [(4, 100, 4), (100, 6, 4), (1, 100, 1), (100, 3, 1)]
)
def test_length_is_limited_by_max_tokens_and_by_the_context(
    max_tokens: int, max_context_tokens: int, expected: int
) -> None:
    sampling = replace(FREE, max_tokens=max_tokens)
    source = stream(sampling, max_context_tokens=max_context_tokens)
    while (token := source.draw()).finish_reason is None:
        pass
    assert token.finish_reason is FinishReason.LENGTH
    assert source.generated_tokens == expected


@pytest.mark.parametrize(("logprobs", "entries"), [(0, 1), (1, 1), (5, 5)])
def test_logprobs_name_the_chosen_token_first_and_add_up_to_less_than_1(logprobs: int, entries: int) -> None:
    source = stream(replace(FREE, logprobs=logprobs))
    for _ in range(200):
        drawn = source.draw()
        assert drawn.logprobs is not None
        assert drawn.logprobs[0].token_id == drawn.token_id
        assert len({entry.token_id for entry in drawn.logprobs}) == len(drawn.logprobs) == entries
        assert [entry.rank for entry in drawn.logprobs] == list(range(1, entries + 1))
        values = [entry.logprob for entry in drawn.logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(2.718281828**value for value in values) < 1.0


def test_logprobs_are_made_only_when_asked_for_and_change_nothing() -> None:
    assert stream(FREE).draw().logprobs is None
    assert draw(stream(FREE), 20) == draw(stream(replace(FREE, logprobs=3)), 20)


def test_digest_names_the_context() -> None:
    source = stream(FREE, (100, 200))
    assert source.context_digest() == context_digest((100, 200))
    token_id = source.draw().token_id
    assert source.context_digest() == context_digest((100, 200, token_id))
