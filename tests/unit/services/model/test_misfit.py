"""What a model cannot take is told apart by what is at fault."""

from __future__ import annotations

import pytest

from services.model.misfit import Misfit, misfit


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ((), Misfit("the prompt is empty")),
        ((7, 100), Misfit("100 is not in the vocabulary of 100 tokens", 1)),
        ((7, 3, -1), Misfit("-1 is not in the vocabulary of 100 tokens", 2)),
        ((7,) * 10, Misfit("the prompt has 10 tokens; the model takes 10, output included")),
    ],
)
def test_a_prompt_over_a_limit_is_told_why(token_ids: tuple[int, ...], expected: Misfit) -> None:
    assert misfit(token_ids, vocabulary_size=100, max_context_tokens=10) == expected


def test_the_first_and_last_token_of_the_vocabulary_and_one_token_of_output_fit() -> None:
    assert misfit([0, 99] + [7] * 7, vocabulary_size=100, max_context_tokens=10) is None
