"""Counting, label caps, and the page of a process."""

from __future__ import annotations

import socket

import prometheus_client
import pytest

from services.telemetry.catalogue import gateway, router, vllm
from services.telemetry.labels import MAX_CHARACTERS, NONE, OTHER, LabelCap
from services.telemetry.meters import Tally
from services.telemetry.process import ProcessTelemetry
from services.telemetry.settings import TelemetrySettings
from services.telemetry.vllm_names import VllmNames
from tests.support.scrape import Page, scrape


def test_values_beyond_the_cap_are_counted_together() -> None:
    cap = LabelCap(2)
    assert [cap.value(name) for name in ("a", "b", "c", "a", "d", "b")] == ["a", "b", OTHER, "a", OTHER, "b"]


def test_known_values_are_never_lost_to_those_that_clients_make_up() -> None:
    cap = LabelCap(2, known=("chatbot", "coder", "summarizer"))
    assert cap.value("made up") == OTHER
    assert cap.value("summarizer") == "summarizer"


def test_known_values_leave_no_room_beyond_the_cap() -> None:
    cap = LabelCap(2, known=("chatbot",))
    assert [cap.value(name) for name in ("a", "b", "chatbot")] == ["a", OTHER, "chatbot"]


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


def test_what_is_expected_is_shown_before_it_is_counted() -> None:
    tally = Tally(("slos.kind",), ("invalid",), ("engine",))
    tally.add("engine")
    assert tally.readings() == [(0, {"slos.kind": "invalid"}), (1, {"slos.kind": "engine"})]


def test_names_of_vllm_keep_their_colon_whatever_prometheus_asks_for() -> None:
    telemetry = ProcessTelemetry(TelemetrySettings(), "test", "test-1")
    names = VllmNames(telemetry.registry, "model")
    names.counter(vllm.PROMPT_TOKENS).inc(3)
    names.counters(vllm.REQUEST_SUCCESS, vllm.FINISHED_REASON, ("stop", "length"))["stop"].inc()
    telemetry.serve()
    try:
        page = scrape(telemetry.metrics_address)
    finally:
        telemetry.close()
    ((labels, value),) = page.samples["vllm:prompt_tokens_total"]
    assert (labels, value) == ({"model_name": "model", "engine": "0"}, 3)
    assert page.value(vllm.REQUEST_SUCCESS, finished_reason="stop") == 1
    assert page.value(vllm.REQUEST_SUCCESS, finished_reason="length") == 0


def test_a_metric_that_cannot_be_read_is_logged_and_breaks_no_other(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = ProcessTelemetry(TelemetrySettings(), "test", "test-1")

    def broken() -> float:
        raise ZeroDivisionError

    telemetry.meters.observe_one(gateway.HTTP_ACTIVE, broken)
    telemetry.meters.observe_one(router.REQUESTS_RECEIVED, lambda: 7)
    page = Page(prometheus_client.generate_latest(telemetry.registry).decode())
    telemetry.close()
    assert page.value(router.REQUESTS_RECEIVED) == 7
    assert f"metric {gateway.HTTP_ACTIVE.name} could not be read" in caplog.text


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
    assert telemetry.serve() == ""
    assert telemetry.metrics_address == ""
    telemetry.close()
