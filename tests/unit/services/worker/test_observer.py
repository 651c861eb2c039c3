"""What a worker's observer passes on to its metrics."""

from __future__ import annotations

import prometheus_client

from decode_worker.policy import DecodePolicy
from services.engine.protocol import FinishReason, RequestOutput
from services.telemetry.catalogue import vllm
from services.telemetry.process import ProcessTelemetry
from services.telemetry.settings import TelemetrySettings
from services.worker.ledger import LedgerEntry
from services.worker.observer import WorkerObserver
from tests.support.engine_facts import FACTS
from tests.support.scrape import Page
from tests.unit.services.worker.worker_support import ScriptedEngine

NOW_S = 9_000.0


def test_outputs_are_counted_and_noted_in_the_ledger_entry_of_their_request() -> None:
    telemetry = ProcessTelemetry(TelemetrySettings(), "test", "test")
    observer = WorkerObserver(telemetry, ScriptedEngine(), FACTS, DecodePolicy(), "decode-0")
    entry = LedgerEntry("a", "o", "a", 0, arrived_s=NOW_S)
    observer.output(entry, RequestOutput("a", (1, 2)), NOW_S + 1.0)
    observer.output(entry, RequestOutput("a", (3,), finish_reason=FinishReason.LENGTH), NOW_S + 1.5)
    page = Page(prometheus_client.generate_latest(telemetry.registry).decode())
    telemetry.close()
    assert page.value(vllm.GENERATION_TOKENS) == 3
    assert page.value(vllm.REQUEST_SUCCESS, finished_reason="length") == 1
    assert (entry.tokens, entry.last_s) == (3, NOW_S + 1.5)
