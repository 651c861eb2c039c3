"""Requests are found by progress, worker and rank, and their contexts are counted as they grow."""

from __future__ import annotations

import pickle

import pytest

from services.slo.admission import Progress, RequestFacts
from services.slo.admission.index import MOST_CHANGES, RequestIndex
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract
from tests.unit.services.slo.admission.support import START_S, Tracked


@pytest.fixture
def index() -> RequestIndex:
    return RequestIndex()


def request(
    name: str,
    rank_s: float = START_S,
    progress: Progress = Progress.QUEUED,
    at: tuple[str, str] = ("p1", "d1"),
    prompt_tokens: int = 100,
) -> Tracked:
    facts = RequestFacts(name, prompt_tokens, 50)
    return Tracked(facts, AttainmentMeter(Contract(), START_S), *at, False, False, rank_s, progress)


def ids(found: list[Tracked]) -> list[str]:
    return [found_request.facts.request_id for found_request in found]


def names(index: RequestIndex, worker_id: str) -> dict[str, list[str]]:
    def of(found: object) -> list[str]:
        return ids(found)  # type: ignore[arg-type]

    return {
        "queued": of(index.queued()),
        "awaiting": of(index.awaiting(worker_id)),
        "prefilling": of(index.prefilling(worker_id)),
        "decoding": of(index.decoding(worker_id)),
    }


def test_a_request_is_where_its_progress_and_its_workers_say(index: RequestIndex) -> None:
    one = request("a")
    index.file(one)
    assert names(index, "p1") == {"queued": ["a"], "awaiting": ["a"], "prefilling": [], "decoding": []}
    assert names(index, "d1")["decoding"] == ["a"], "it will be"
    assert (index.queued_count(), index.awaiting_count("p1"), index.decoding_count("d1")) == (1, 1, 1)
    one.progress = Progress.PREFILLING
    index.file(one)
    assert names(index, "p1") == {"queued": [], "awaiting": [], "prefilling": ["a"], "decoding": []}
    assert (index.queued_count(), index.awaiting_count("p1"), index.prefilling_count("p1")) == (0, 0, 1)
    one.progress, one.decode_worker_id = Progress.HANDOVER, "d2"
    index.file(one)
    assert names(index, "p1") == {"queued": [], "awaiting": [], "prefilling": [], "decoding": []}
    assert (names(index, "d1")["decoding"], names(index, "d2")["decoding"]) == ([], ["a"])
    index.remove("a")
    assert (len(index), index.get("a"), index.decoding_count("d2")) == (0, None, 0)
    index.remove("a")


def test_prompts_come_by_rank_and_at_equal_rank_as_they_were_filed(index: RequestIndex) -> None:
    for name, rank_s in (("late", 30.0), ("b", 10.0), ("early", 5.0), ("a", 10.0)):
        index.file(request(name, START_S + rank_s))
        index.file(request(f"given {name}", START_S + rank_s, Progress.PREFILLING))
    order = ["early", "b", "a", "late"]
    assert names(index, "p1")["queued"] == order
    assert names(index, "p1")["awaiting"] == order
    assert names(index, "p1")["prefilling"] == [f"given {name}" for name in order]


def test_workers_that_nothing_was_filed_for_have_nothing(index: RequestIndex) -> None:
    assert names(index, "p9") == {"queued": [], "awaiting": [], "prefilling": [], "decoding": []}
    counts = (index.decoding_count, index.prefilling_count, index.awaiting_count, index.decoding_tokens)
    assert [count("p9") for count in counts] == [0, 0, 0, 0]


def test_contexts_are_counted_as_they_are_now(index: RequestIndex) -> None:
    waiting, stream = request("w"), request("s", progress=Progress.DECODING, prompt_tokens=40)
    index.file(waiting)
    index.file(stream)
    assert index.decoding_tokens("d1") == 140
    stream.generated_tokens = 5
    index.grew("d1", 5)
    assert index.decoding_tokens("d1") == 145
    stream.decode_worker_id = "d2"
    index.file(stream)
    assert (index.decoding_tokens("d1"), index.decoding_tokens("d2")) == (100, 45)
    waiting.generated_tokens = 3
    index.remove("w")
    assert index.decoding_tokens("d1") == 0, "it goes with what it was counted for"


def test_changes_are_told_once_and_from_the_first_question_on(index: RequestIndex) -> None:
    index.file(request("a"))
    assert index.take_changes("d1") is None, "all of them are to be looked at"
    assert index.take_changes("d1") == {}
    moved = request("b")
    index.file(moved)
    assert list(index.take_changes("d1") or ()) == ["b"]
    index.take_changes("d2")
    moved.decode_worker_id = "d2"
    index.file(moved)
    assert list(index.take_changes("d1") or ()) == ["b"], "it left"
    assert list(index.take_changes("d2") or ()) == ["b"]
    index.remove("b")
    assert list(index.take_changes("d2") or ()) == ["b"]


@pytest.mark.parametrize(("changes", "told"), [(MOST_CHANGES, True), (MOST_CHANGES + 1, False)])
def test_too_many_changes_are_told_as_all(index: RequestIndex, changes: int, *, told: bool) -> None:
    index.take_changes("d1")
    for number in range(changes):
        index.file(request(f"r{number}"))
    assert (index.take_changes("d1") is not None) is told
    assert index.take_changes("d1") == {}


def test_a_worker_that_is_gone_is_forgotten_unless_requests_are_still_there(index: RequestIndex) -> None:
    stays = request("a", at=("p1", "d1"))
    index.file(stays)
    index.take_changes("d1")
    index.forget("d1")
    assert index.take_changes("d1") is None
    assert index.decoding_tokens("d1") == 100
    index.remove("a")
    index.forget("d1")
    assert index.decoding("d1") == []


def test_workers_that_come_and_go_leave_nothing_behind(index: RequestIndex) -> None:
    def serve(number: int) -> None:
        one = request("a", at=(f"p{number}", f"d{number}"))
        for worker_id in one.prompt_worker_id, one.decode_worker_id:
            index.take_changes(worker_id)
        for progress in Progress:
            one.progress = progress
            index.file(one)
        index.grew(one.decode_worker_id, 1)
        one.generated_tokens += 1
        for worker_id in one.prompt_worker_id, one.decode_worker_id:
            index.forget(worker_id)
        index.remove("a")
        index.grew(one.decode_worker_id, 1)

    serve(100)
    kept = pickle.dumps(index)
    for number in range(101, 105):
        serve(number)
    assert pickle.dumps(index) == kept


def test_requests_may_be_removed_while_they_are_looked_through(index: RequestIndex) -> None:
    for name in "abc":
        index.file(request(name))
    seen = []
    for found in index:
        seen.append(found.facts.request_id)
        index.remove(found.facts.request_id)
    assert seen == ["a", "b", "c"]
    assert len(index) == 0
