"""Sessions: one contract for the requests of a task."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.slo.attainment import AttainmentMeter
from services.slo.contract import PAPER_PROFILES, Contract, DecodeTarget, PrefillTarget
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
