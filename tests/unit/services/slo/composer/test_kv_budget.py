"""Free blocks and slots, and who gives them up."""

from __future__ import annotations

from collections.abc import Sequence

from services.slo.composer.kv_budget import KvBudget
from services.slo.composer.request_queues import sort_into_queues
from services.slo.composer.step import Limits, SchedulableRequest
from tests.unit.services.slo.composer.works import BLOCK, prefill, stream, waiting


def budget(works: Sequence[SchedulableRequest], free_blocks: int, slots: int = 8) -> KvBudget:
    return KvBudget(sort_into_queues(works, BLOCK, 0.25), free_blocks, Limits(64, slots, BLOCK))


def best_effort(name: str, context: int = 7, since_s: float = 0.0, pinned: bool = False) -> SchedulableRequest:
    return stream(name, context, tpot_s=float("inf"), waiting_since_s=since_s, pinned=pinned)


def full(name: str, due_s: float = 1.0) -> SchedulableRequest:
    """A stream whose blocks are full."""
    return stream(name, 8, due_s=due_s, held_blocks=2)


def names(works: Sequence[SchedulableRequest]) -> list[str]:
    return [w.request_id for w in works]


def test_a_block_is_taken_once() -> None:
    a, b = full("a"), full("b")
    kv = budget([a, b], 1)
    assert kv.take(a, 1)
    assert kv.take(a, 4), "the block has room for four tokens"
    assert not kv.take(a, 5)
    assert not kv.take(b, 1)
    assert kv.take(stream("has", 7, due_s=1.0, held_blocks=2), 1), "it needs none"


def test_what_is_reserved_is_not_free() -> None:
    chunked = prefill("chunked", 8, 9.0, computed=8, held_blocks=2)
    needy = full("needy")
    assert not budget([chunked, needy], 2).take(needy, 1)
    assert budget([chunked, needy], 3).take(needy, 1)


def test_victims_are_preempted_from_the_last_and_only_if_that_is_enough() -> None:
    needy = stream("needy", 8, due_s=1.0, held_blocks=2)
    victims = [best_effort("a"), best_effort("b"), best_effort("c")]
    kv = budget([needy, *victims], 0)
    assert not kv.take(needy, 29, victims), "all of them free six blocks, and it needs eight"
    assert kv.preempted == []
    assert kv.take(needy, 12, victims), "three blocks"
    assert names(kv.preempted) == ["c", "b"]
    assert kv.take(needy, 16, victims[:1]), "one block is left of those"
    assert names(kv.preempted) == ["c", "b"]


def test_all_or_none_of_several_streams_get_a_block() -> None:
    works = [full("a"), full("b"), full("c")]
    kv = budget(works, 2)
    assert not kv.take_all(works)
    assert kv.take(full("d"), 1), "none was taken before"
    assert kv.take_all(works[:1])
    assert not kv.take_all(works[1:])


def test_streams_that_hold_a_block_for_their_next_token() -> None:
    kv = budget([], 0)
    assert kv.has_blocks([stream("a", 7, held_blocks=2)])
    assert not kv.has_blocks([stream("a", 7, held_blocks=2), full("b")])


def test_what_is_free_of_anyone_must_do_for_streams_and_those_that_wait() -> None:
    a, w = full("a"), waiting("w", 8, 9.0)
    assert budget([a, w], 3).fits([a], [w])
    assert not budget([a, w], 2).fits([a], [w])
    assert budget([a, w], 2).fits([], [w])
    assert not budget([a, w], 3, slots=1).fits([a], [w]), "no slot"
    assert not budget([a, w, best_effort("be")], 0).fits([a], []), "nobody is preempted for it"


def test_all_or_none_of_the_drafts_get_blocks() -> None:
    works = [stream(name, 7, due_s=1.0, held_blocks=2, draft_tokens=4) for name in ("a", "b")]
    kv = budget(works, 1)
    assert not kv.take_drafts(works)
    assert kv.take(full("c"), 1), "none was taken before"
    kv = budget(works, 2)
    assert kv.take_drafts(works)
    assert not kv.take(full("c"), 1)
    assert budget(works, 0).take_drafts([stream("fits", 4, due_s=1.0, held_blocks=2, draft_tokens=3)])


def test_a_running_prefill_uses_what_is_reserved_for_it_as_far_as_there_is_any() -> None:
    chunked = prefill("chunked", 40, 9.0, computed=8, held_blocks=2)
    assert budget([chunked], 10).use_reserved(chunked, 40) == 40
    assert budget([chunked], 3).use_reserved(chunked, 40) == 12
    assert budget([chunked], 3).use_reserved(chunked, 5) == 5
    assert budget([chunked], 0).use_reserved(chunked, 40) == 0
    assert budget([chunked], -2).use_reserved(chunked, 40) == 0
    other = prefill("other", 40, 9.0, computed=8, held_blocks=2)
    kv = budget([chunked, other], 5)
    assert kv.use_reserved(chunked, 12) == 12
    assert kv.use_reserved(other, 40) == 8, "two blocks are left"


def test_an_admission_takes_a_slot_and_all_its_blocks() -> None:
    a, b = waiting("a", 8, 9.0), waiting("b", 4, 9.0)
    kv = budget([a, b], 3)
    assert kv.admit(a)
    assert kv.admit(b)
    assert not kv.admit(waiting("c", 1, 9.0)), "no block"
    kv = budget([a, b], 9, slots=1)
    assert kv.admit(a)
    assert not kv.admit(b), "no slot"


def test_best_effort_is_admitted_on_nobodys_cost() -> None:
    kv = budget([best_effort("be")], 0)
    assert not kv.admit(waiting("w", 4))
    assert kv.preempted == []


def test_a_promise_is_admitted_at_the_cost_of_the_latest_best_effort() -> None:
    works = [best_effort("old", since_s=1.0), best_effort("young", since_s=9.0), best_effort("middle", since_s=5.0)]
    kv = budget(works, 0)
    p = waiting("p", 16, 9.0)
    assert kv.can_admit_promised(p)
    assert kv.admit_promised(p)
    assert names(kv.preempted) == ["young", "middle"]
    assert names(kv.best_effort()) == ["old"]
    assert not kv.can_admit_promised(waiting("q", 12, 9.0))
    assert not kv.admit_promised(waiting("q", 12, 9.0))
    assert len(kv.preempted) == 2, "nobody is preempted in vain"


def test_a_promise_is_admitted_to_a_slot_of_best_effort() -> None:
    works = [best_effort("a", since_s=1.0), best_effort("b", since_s=2.0)]
    kv = budget(works, 100, slots=2)
    p = waiting("p", 4, 9.0)
    assert kv.can_admit_promised(p)
    assert kv.admit_promised(p)
    assert names(kv.preempted) == ["b"]
    full_of_promises = budget([stream("s", due_s=1.0)], 100, slots=1)
    assert not full_of_promises.can_admit_promised(p)
    assert not full_of_promises.admit_promised(p)


def test_preempting_a_prefill_frees_what_is_reserved_for_it_too() -> None:
    chunked = prefill("chunked", 40, computed=8, held_blocks=2)
    kv = budget([chunked], 10)
    assert kv.can_admit_promised(waiting("p", 48, 9.0))
    assert kv.admit_promised(waiting("p", 48, 9.0)), "two held and ten reserved"


def test_who_is_preempted_first_is_last() -> None:
    works = [
        best_effort("short", 5, since_s=3.0),
        best_effort("long", 30, since_s=3.0),
        best_effort("old", since_s=1.0),
        best_effort("b", since_s=5.0),
        best_effort("a", since_s=5.0),
        best_effort("pinned", since_s=9.0, pinned=True),
        waiting("waits", 4),
        stream("promised", due_s=1.0),
    ]
    assert names(budget(works, 9).best_effort()) == ["old", "long", "short", "a", "b"]


def test_later_best_effort_is_what_came_after_and_is_not_in_the_step() -> None:
    works = [best_effort(name, since_s=float(index)) for index, name in enumerate("abcd")]
    kv = budget(works, 0)
    assert names(kv.later_best_effort(works[1], {"d": 1})) == ["c"]
    assert names(kv.later_best_effort(works[3], {})) == []
    assert kv.take(stream("needy", 8, due_s=1.0, held_blocks=2), 1, [works[2]])
    assert names(kv.later_best_effort(works[0], {})) == ["b", "d"], "what is preempted is gone"
