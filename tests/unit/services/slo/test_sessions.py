"""Sessions: one contract for the requests of a task."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.slo.attainment import AttainmentMeter
from services.slo.contract import PAPER_PROFILES, Contract, DecodeTarget, OnOverload, PrefillTarget
from services.slo.sessions import SessionBook

TOOLS = replace(PAPER_PROFILES["tool_use"], session_id="task", task_deadline_s=10.0)


def test_later_requests_inherit_and_the_last_is_loose() -> None:
    book = SessionBook()
    first = book.terms(TOOLS, arrival_s=100.0)
    second = book.terms(Contract(session_id="task"), arrival_s=103.0)
    last = book.terms(Contract(session_id="task", session_final=True), arrival_s=106.0)
    assert first.contract.decode == second.contract.decode == (DecodeTarget(0.05),)
    assert last.contract.decode == (DecodeTarget(0.1),)
    assert first.task_due_s == second.task_due_s == last.task_due_s == 110.0


def test_the_last_request_ends_the_session() -> None:
    book = SessionBook()
    book.terms(TOOLS, arrival_s=0.0)
    book.terms(Contract(session_id="task", session_final=True), arrival_s=1.0)
    assert not book.terms(Contract(session_id="task"), arrival_s=2.0).contract.promises_anything


def test_a_request_with_targets_of_its_own_keeps_them() -> None:
    book = SessionBook()
    book.terms(TOOLS, arrival_s=0.0)
    own = Contract(prefill=PrefillTarget(ttft_s=0.7), session_id="task")
    terms = book.terms(own, arrival_s=1.0)
    assert terms.contract.prefill == own.prefill
    assert terms.task_due_s == 10.0


def test_a_deadline_without_a_session_counts_from_the_request() -> None:
    terms = SessionBook().terms(Contract(task_deadline_s=2.0), arrival_s=5.0)
    assert terms.task_due_s == 7.0


def test_the_oldest_session_is_forgotten_first() -> None:
    book = SessionBook(max_sessions=2)
    for name in ("a", "b", "a", "c"):
        book.terms(replace(TOOLS, session_id=name), arrival_s=0.0)
    assert book.terms(Contract(session_id="a"), 1.0).contract.promises_anything
    assert not book.terms(Contract(session_id="b"), 1.0).contract.promises_anything


@pytest.mark.parametrize(("done_s", "kept"), [(9.9, True), (10.1, False)])
def test_a_task_done_late_is_a_miss(done_s: float, kept: bool) -> None:
    meter = AttainmentMeter(Contract(), arrival_s=0.0, task_due_s=10.0)
    meter.note_tokens(3, done_s)
    meter.end(done_s)
    assert meter.attainment().kept is kept


def test_a_preview_says_what_would_apply_and_remembers_nothing() -> None:
    book = SessionBook()
    assert book.preview(TOOLS, now_s=100.0).task_due_s == 110.0
    assert not book.preview(Contract(session_id="task"), now_s=101.0).contract.promises_anything
    book.terms(TOOLS, arrival_s=103.0)
    later = Contract(session_id="task", session_final=True)
    assert book.preview(later, now_s=105.0) == book.preview(later, now_s=106.0) == book.terms(later, arrival_s=107.0)
    assert book.preview(later, now_s=108.0).task_due_s is None, "the session has ended"


def test_last_targets_are_for_the_last_request_of_a_session() -> None:
    alone = replace(TOOLS, session_id="", session_final=True)
    assert SessionBook().terms(alone, arrival_s=100.0).contract.decode == TOOLS.decode


def test_a_later_request_decides_for_itself_what_becomes_of_it_under_overload() -> None:
    book = SessionBook()
    book.terms(TOOLS, arrival_s=100.0)
    later = Contract(session_id="task", on_overload=OnOverload.REFUSE)
    assert book.terms(later, arrival_s=101.0).contract.on_overload is OnOverload.REFUSE
    assert book.terms(Contract(session_id="task"), arrival_s=102.0).contract.on_overload is OnOverload.BEST_EFFORT


def test_a_later_deadline_replaces_that_of_the_session_and_counts_from_its_beginning() -> None:
    book = SessionBook()
    book.terms(TOOLS, arrival_s=100.0)
    assert book.terms(Contract(session_id="task", task_deadline_s=25.0), arrival_s=104.0).task_due_s == 125.0
    own = Contract(prefill=PrefillTarget(ttft_s=0.7), session_id="task", task_deadline_s=40.0)
    assert book.terms(own, arrival_s=105.0).task_due_s == 140.0


def test_sessions_with_many_stages_and_long_texts_push_out_others_sooner() -> None:
    stages = (*(DecodeTarget(0.1, ends_with="x" * 640) for _ in range(9)), DecodeTarget(0.1))
    heavy = Contract(decode=stages)
    book = SessionBook(max_weight=450)
    book.terms(replace(LIGHT, session_id="light"), 1000.0)
    for index in range(4):
        book.terms(replace(heavy, session_id=f"heavy-{index}"), 1000.0)
    assert book.preview(Contract(session_id="light"), 1000.0).contract.promises_anything, "4 x 101 + 2 still fit"
    book.terms(replace(heavy, session_id="heavy-4"), 1000.0)
    assert not book.preview(Contract(session_id="light"), 1000.0).contract.promises_anything
    assert book.preview(Contract(session_id="heavy-4"), 1000.0).contract.decode == stages


def test_a_session_that_comes_again_or_ends_weighs_once_and_no_more() -> None:
    book = SessionBook(max_weight=4)
    for _ in range(10):
        book.terms(replace(LIGHT, session_id="a"), 1000.0)
        book.terms(replace(LIGHT, session_id="b", session_final=True), 1000.0)
    book.terms(replace(LIGHT, session_id="c"), 1000.0)
    for name in "ac":
        assert book.preview(Contract(session_id=name), 1000.0).contract.promises_anything


LIGHT = Contract(decode=(DecodeTarget(0.1),))


def test_two_owners_may_use_one_id() -> None:
    book = SessionBook()
    book.terms(TOOLS, 100.0, "acme/")
    assert not book.preview(Contract(session_id="task"), 101.0, "globex/").contract.promises_anything
    assert not book.terms(Contract(session_id="task"), 101.0).contract.promises_anything
    assert book.preview(Contract(session_id="task"), 101.0, "acme/").contract.promises_anything
