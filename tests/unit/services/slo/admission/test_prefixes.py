"""What is known of the prefix caches of workers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.slo.admission.prefixes import PrefixIndex
from tests.unit.services.slo.admission.support import Blocks

PROMPT = list(range(100))


def test_a_worker_is_believed_once_it_has_reported_a_hit() -> None:
    index = PrefixIndex()
    index.computed("p", Blocks(PROMPT), 16, 1000, believed_tokens=0, cached_tokens=0)
    assert index.holders(Blocks(PROMPT), 16) == ()
    index.computed("p", Blocks(PROMPT), 16, 1000, believed_tokens=0, cached_tokens=96)
    assert index.holders(Blocks(PROMPT), 16) == (("p", 96),)
    assert index.holders(Blocks([*PROMPT[:40], 7, 7, 7, 7, 7, 7, 7, 7, 7]), 16) == (("p", 32),)
    assert index.holders(Blocks([7, *PROMPT]), 16) == ()


def test_a_belief_that_was_wrong_wipes_what_was_known() -> None:
    index = PrefixIndex()
    index.computed("p", Blocks(PROMPT), 16, 1000, believed_tokens=0, cached_tokens=96)
    index.computed("p", Blocks(list(range(200, 300))), 16, 1000, believed_tokens=48, cached_tokens=16)
    assert index.holders(Blocks(PROMPT), 16) == ()


def test_a_worker_that_is_gone_has_nothing() -> None:
    index = PrefixIndex()
    index.computed("p", Blocks(PROMPT), 16, 1000, believed_tokens=0, cached_tokens=96)
    index.forget("p")
    index.forget("p")
    assert index.holders(Blocks(PROMPT), 16) == ()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 8))
def test_the_last_token_is_never_cached_and_memory_is_bounded(starts: list[int], block_tokens: int) -> None:
    index = PrefixIndex()
    for start in starts:
        prompt = list(range(start, start + 40))
        index.computed("p", Blocks(prompt), block_tokens, 20, believed_tokens=0, cached_tokens=1)
        assert all(tokens < len(prompt) for _, tokens in index.holders(Blocks(prompt), block_tokens))
    assert len(index._holders) <= 10
