"""Composition of one step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.engine.emulated.blocks import blocks_for
from services.engine.emulated.scheduler import Admission, Candidate, Chunk, StepLimits, StepPlan, compose_step

LIMITS = StepLimits(max_step_tokens=16, max_running_requests=4, block_tokens=4)


def decode(name: str, computed: int) -> Candidate:
    return Candidate(name, computed, 1, blocks_for(computed, 4), decoding=True)


def prefill(name: str, computed: int, pending: int) -> Candidate:
    return Candidate(name, computed, pending, blocks_for(computed + pending, 4), decoding=False)


def queued(name: str, pending: int, pulls_kv: bool = False) -> Candidate:
    return Candidate(name, 0, pending, 0, decoding=False, pulls_kv=pulls_kv)


def compose(
    running: list[Candidate],
    waiting: list[Candidate] | None = None,
    free_blocks: int = 100,
    pulling: int = 0,
    limits: StepLimits = LIMITS,
) -> StepPlan:
    return compose_step(running, waiting or [], pulling, free_blocks, limits)


def test_nothing_to_do() -> None:
    plan = compose([])
    assert (plan.chunks, plan.admitted, plan.preempted, plan.shape.tokens) == ((), (), (), 0)


def test_decodes_come_before_prompts_that_were_admitted_earlier() -> None:
    plan = compose([prefill("long", 10, 50), decode("a", 5), decode("b", 6)], [queued("new", 3)])
    assert plan.chunks == (Chunk("a", 1, 0), Chunk("b", 1, 0), Chunk("long", 14, 0))
    assert plan.admitted == ()
    shape = plan.shape
    assert (shape.decode_requests, shape.decode_tokens, shape.decode_context_tokens) == (2, 2, 11)
    assert (shape.prefill_requests, shape.prefill_tokens) == (1, 14)
    assert shape.prefill_attention_pairs == 14 * (10 + 7)


def test_queue_is_served_from_its_head_in_what_is_left_of_the_step() -> None:
    plan = compose([decode("a", 5)], [queued("x", 10), queued("y", 10), queued("z", 1)])
    assert plan.admitted == (Admission("x", 3), Admission("y", 3))
    assert plan.chunks == (Chunk("a", 1, 0), Chunk("x", 10, 0), Chunk("y", 5, 0))


def test_head_of_the_queue_that_does_not_fit_is_not_overtaken() -> None:
    assert compose([], [queued("big", 30), queued("small", 1)], free_blocks=7).admitted == ()


def test_pulls_get_blocks_and_a_place_but_no_tokens() -> None:
    plan = compose([prefill("long", 0, 60)], [queued("pulls", 9, pulls_kv=True), queued("waits", 1)])
    assert plan.admitted == (Admission("pulls", 3),)
    assert plan.chunks == (Chunk("long", 16, 0),)
    assert compose([], [queued("x", 1)], pulling=4).admitted == ()


def test_arrived_kv_is_worked_on_before_other_prompts() -> None:
    arrived = Candidate("arrived", 20, 1, 6, decoding=False)
    plan = compose([prefill("long", 0, 60), arrived])
    assert plan.chunks == (Chunk("arrived", 1, 0), Chunk("long", 15, 0))
    assert (plan.shape.prefill_requests, plan.shape.decode_requests) == (2, 0)


def test_youngest_gives_way_when_blocks_run_out() -> None:
    plan = compose([decode("old", 8), decode("mid", 8), decode("young", 9)], [queued("new", 1)], free_blocks=0)
    assert plan.preempted == ("young",)
    assert plan.chunks == (Chunk("old", 1, 1), Chunk("mid", 1, 1))
    assert plan.admitted == ()


def test_request_that_is_alone_without_a_block_gives_up_its_own() -> None:
    plan = compose([decode("only", 8)], free_blocks=0)
    assert (plan.preempted, plan.chunks) == (("only",), ())


candidates = st.one_of(
    st.builds(decode, st.just("?"), st.integers(1, 40)),
    st.builds(prefill, st.just("?"), st.integers(0, 20), st.integers(1, 40)),
)


@given(
    st.lists(candidates, max_size=8),
    st.lists(st.builds(queued, st.just("?"), st.integers(1, 40), st.booleans()), max_size=6),
    st.integers(0, 20),
    st.integers(0, 3),
    st.integers(1, 40),
)
def test_no_plan_exceeds_a_limit(
    running: list[Candidate], waiting: list[Candidate], free_blocks: int, pulling: int, max_step_tokens: int
) -> None:
    def named(prefix: str, found: list[Candidate]) -> list[Candidate]:
        return [
            Candidate(
                f"{prefix}{position}",
                candidate.computed_tokens,
                candidate.pending_tokens,
                candidate.held_blocks,
                candidate.decoding,
                candidate.pulls_kv,
            )
            for position, candidate in enumerate(found)
        ]

    running, waiting = named("r", running), named("w", waiting)
    limits = StepLimits(max_step_tokens, 8, 4)
    plan = compose_step(running, waiting, pulling, free_blocks, limits)
    known = {candidate.request_id: candidate for candidate in running + waiting}
    kept = [candidate for candidate in running if candidate.request_id not in plan.preempted]

    assert sum(chunk.tokens for chunk in plan.chunks) == plan.shape.tokens <= max_step_tokens
    assert len({chunk.request_id for chunk in plan.chunks}) == len(plan.chunks)
    assert all(1 <= chunk.tokens <= known[chunk.request_id].pending_tokens for chunk in plan.chunks)
    assert not {chunk.request_id for chunk in plan.chunks} & set(plan.preempted)
    freed = sum(known[request_id].held_blocks for request_id in plan.preempted)
    taken = sum(chunk.added_blocks for chunk in plan.chunks) + sum(part.added_blocks for part in plan.admitted)
    assert taken <= free_blocks + freed
    assert [part.request_id for part in plan.admitted] == [item.request_id for item in waiting[: len(plan.admitted)]]
    assert not plan.admitted or len(kept) + pulling + len(plan.admitted) <= limits.max_running_requests
    assert list(plan.preempted) == [item.request_id for item in reversed(running[len(kept) :])]
    assert not running or plan.chunks or plan.preempted
    after = {chunk.request_id: chunk for chunk in plan.chunks}
    for candidate in kept:
        if chunk := after.get(candidate.request_id):
            needed = blocks_for(candidate.computed_tokens + chunk.tokens, 4)
            assert candidate.held_blocks + chunk.added_blocks >= needed
