"""Log probabilities are shown as JSON can say them."""

from __future__ import annotations

import json
import math

from gateway.logprobs import LEAST_LOGPROB, chat_logprobs, completion_logprobs, token_name
from slos_serve import TokenLogprob

POSITION = (TokenLogprob(5, -math.inf, 1), TokenLogprob(6, -0.5, 2), TokenLogprob(7, -1e300, 3))


def test_a_token_of_no_probability_at_all_is_shown_with_the_smallest_logarithm() -> None:
    chat = chat_logprobs([POSITION], 3, token_name)
    assert json.dumps(chat, allow_nan=False)
    assert chat["content"][0]["logprob"] == LEAST_LOGPROB
    assert [top["logprob"] for top in chat["content"][0]["top_logprobs"]] == [LEAST_LOGPROB, -0.5, LEAST_LOGPROB]
    completion, _ = completion_logprobs([POSITION], 3, token_name, 0)
    assert json.dumps(completion, allow_nan=False)
    assert completion["token_logprobs"] == [LEAST_LOGPROB]
    assert sorted(completion["top_logprobs"][0].values()) == [LEAST_LOGPROB, LEAST_LOGPROB, -0.5]
