"""The planner's answers about a request are remembered in bounded memory."""

from __future__ import annotations

from router.requests.planning_log import KEPT_NOTES, PlanningLog, PlanningNote, PlanningRound
from services.slo.admission import Outcome


def test_a_long_wait_is_remembered_by_its_beginning_and_its_end() -> None:
    log = PlanningLog()
    for index in range(500):
        log.add(PlanningNote(PlanningRound(index, index * 0.01, 1), Outcome.HELD))
    log.add(PlanningNote(PlanningRound(500, 5.0, 1), Outcome.GUARANTEED))
    assert (len(log.notes), log.total) == (KEPT_NOTES, 501)
    assert [log.notes[0].round.number, log.notes[-1].round.number] == [0, 500]
    log.add(PlanningNote(PlanningRound(600, 6.0, 1), Outcome.MOVED))
    assert log.verdict is not None
    assert log.verdict.outcome is Outcome.GUARANTEED
