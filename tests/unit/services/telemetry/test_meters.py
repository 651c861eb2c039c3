"""Counting, label caps, and the page of a process."""

from __future__ import annotations

import socket

from services.telemetry.catalogue import gateway, router
from services.telemetry.labels import MAX_CHARACTERS, NONE, OTHER, LabelCap
from services.telemetry.meters import Tally
from services.telemetry.process import ProcessTelemetry
from services.telemetry.settings import TelemetrySettings
from tests.support.scrape import scrape


def test_values_beyond_the_cap_are_counted_together() -> None:
    cap = LabelCap(2)
    assert [cap.value(name) for name in ("a", "b", "c", "a", "d", "b")] == ["a", "b", OTHER, "a", OTHER, "b"]


def test_known_values_are_never_lost_to_those_that_clients_make_up() -> None:
    cap = LabelCap(2, known=("chatbot", "coder", "summarizer"))
    assert cap.value("made up") == OTHER
    assert cap.value("summarizer") == "summarizer"


def test_nothing_is_none_and_long_values_are_cut() -> None:
    cap = LabelCap(2)
    assert cap.value("") == NONE
    assert cap.value("x" * 1000) == "x" * MAX_CHARACTERS


def test_a_tally_counts_by_its_labels() -> None:
    tally = Tally(("slos.profile", "slos.tenant"))
    tally.add("chatbot", "a")
    tally.add("chatbot", "a", amount=2)
    tally.add("coder", "a")
    assert tally.readings() == [
        (3, {"slos.profile": "chatbot", "slos.tenant": "a"}),
        (1, {"slos.profile": "coder", "slos.tenant": "a"}),
    ]


def test_a_process_shows_what_it_measured() -> None:
    telemetry = ProcessTelemetry(TelemetrySettings(), "test", "test-1")
    telemetry.meters.observe_one(router.REQUESTS_RECEIVED, lambda: 7)
    telemetry.meters.histogram(router.PLANNER_ROUND_DURATION).record(0.001)
    telemetry.serve()
    try:
        page = scrape(telemetry.metrics_address)
    finally:
        telemetry.close()
    assert page.value(router.REQUESTS_RECEIVED) == 7
    assert page.value(router.PLANNER_ROUND_DURATION) == 1
    assert page.samples["process_resident_memory_bytes"][0][1] > 0
    ((labels, _),) = page.samples["target_info"]
    assert (labels["service_name"], labels["service_instance_id"]) == ("test", "test-1")


def test_a_port_that_is_taken_stops_the_page_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        telemetry = ProcessTelemetry(TelemetrySettings(metrics_port=taken.getsockname()[1]), "test", "test-1")
        telemetry.meters.observe_one(gateway.HTTP_ACTIVE, lambda: 0)
        telemetry.serve()
        assert telemetry.metrics_address == ""
        telemetry.close()


def test_switched_off_nothing_listens() -> None:
    telemetry = ProcessTelemetry(TelemetrySettings(metrics=False), "test", "test-1")
    telemetry.meters.histogram(router.PLANNER_ROUND_DURATION).record(0.001)
    telemetry.serve()
    assert telemetry.metrics_address == ""
    telemetry.close()
