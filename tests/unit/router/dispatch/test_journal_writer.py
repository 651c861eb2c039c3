"""The journal follows each request through its states, and forgets what was refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from opentelemetry.sdk.resources import Resource

from router.dispatch.journal_writer import JournalWriter
from router.requests.events import Refusal
from router.requests.planning_log import PlanningLog
from services.rpc.errors import OverloadedError
from services.state.journal import RequestJournal
from services.state.journal_entry import RequestState
from services.telemetry.traces import Traces
from tests.unit.router.dispatch.dispatch_bench import DispatchBench
from tests.unit.router.router_support import contract, parsed


@dataclass(slots=True)
class Journal:
    """Writes down what it is told."""

    told: list[tuple[object, ...]] = field(default_factory=list)

    def update(self, request_id: str, **changes: Any) -> None:
        self.told.append((request_id, changes))

    def delivered(self, request_id: str, tokens: int) -> None:
        self.told.append((request_id, tokens))

    def abandon(self, request_id: str) -> None:
        self.told.append(("abandoned", request_id))


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def writer(journal: Journal, bench: DispatchBench) -> JournalWriter:
    return JournalWriter(cast("RequestJournal", journal), bench.cluster)


def test_a_state_is_written_with_the_workers_and_their_epochs(
    bench: DispatchBench, journal: Journal, writer: JournalWriter
) -> None:
    request = bench.handed_over(bench.request())
    writer.on_entered(request)
    bench.lose("d1")
    writer.on_entered(request)
    (_, before), (_, after) = cast("list[tuple[str, dict[str, object]]]", journal.told)
    assert before == {
        "state": RequestState.HANDOVER,
        "attempt": 0,
        "prefill_worker_id": "p1",
        "prefill_engine_epoch": "1",
        "decode_worker_id": "d1",
        "decode_engine_epoch": "1",
        "tokens_delivered": 1,
    }
    assert after == before | {"state": RequestState.QUEUED, "attempt": 1, "decode_engine_epoch": ""}


def test_progress_is_written_in_tokens(bench: DispatchBench, journal: Journal, writer: JournalWriter) -> None:
    writer.on_delivered(bench.decoding(bench.request()))
    assert journal.told == [("r", 2)]


def test_the_id_of_a_refused_request_is_free_again_if_it_was_taken(journal: Journal, writer: JournalWriter) -> None:
    trace = Traces(Resource.get_empty(), 0.0, None).begin()
    for asked in (None, parsed("made here", 5, contract())):
        writer.on_refused(Refusal(OverloadedError("full"), trace, "", 70.0, 71.0, asked, PlanningLog()))
    assert journal.told == [("abandoned", "made here")]
