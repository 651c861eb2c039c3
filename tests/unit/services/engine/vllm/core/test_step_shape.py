"""The shape of a step, read from plans as vLLM makes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from services.engine.vllm.core.step_shape import step_shape
from services.slo.performance import StepShape


def plan(new: dict[str, int], cached: dict[str, int], tokens: dict[str, int], drafts: dict[str, int]) -> Any:
    """A plan; contexts are those before the step."""
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=name, num_computed_tokens=done) for name, done in new.items()],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(cached), num_computed_tokens=list(cached.values())),
        num_scheduled_tokens=tokens,
        scheduled_spec_decode_tokens={name: [0] * count for name, count in drafts.items()},
    )


def requests(**tokens: int) -> Any:
    return {name: SimpleNamespace(num_tokens=count) for name, count in tokens.items()}


def test_prompts_and_streams_are_told_apart_by_what_is_left() -> None:
    made = plan({"new": 16}, {"chunk": 100, "stream": 49}, {"new": 32, "chunk": 50, "stream": 1}, {})
    shape = step_shape(requests(new=48, chunk=150, stream=50), made)
    pairs = 32 * (16 + 16) + 50 * (100 + 25)
    assert shape == StepShape(2, 82, pairs, 1, 1, 50, 0)


def test_drafts_come_on_top_of_what_is_known_and_the_longest_counts() -> None:
    made = plan({}, {"a": 49, "b": 29}, {"a": 4, "b": 2}, {"a": 3, "b": 1})
    assert step_shape(requests(a=50, b=30), made) == StepShape(0, 0, 0.0, 2, 6, 53 + 31, 3)


def test_a_pulled_prompt_that_lacks_one_token_is_a_stream() -> None:
    made = plan({"pulled": 99}, {}, {"pulled": 1}, {})
    assert step_shape(requests(pulled=100), made).decode_requests == 1


def test_output_that_is_computed_again_is_a_prompt() -> None:
    made = plan({}, {"preempted": 0}, {"preempted": 60}, {})
    assert step_shape(requests(preempted=60), made).prefill_tokens == 60
