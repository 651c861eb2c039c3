"""Traces over all processes, and what a scrape of each shows, on an emulated cluster that also loses a worker."""

from __future__ import annotations

import itertools
import json
import secrets
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

from services.telemetry.catalogue import Process, of_process, router
from services.telemetry.catalogue.metric import Kind
from slos_serve.v1 import contract_pb2, inference_pb2
from tests.support.cluster import Answer, ClusterUnderTest, greedy
from tests.support.collector import CollectedSpan, Collector
from tests.support.eventually import wait_until
from tests.support.http_door import HttpDoor
from tests.support.scrape import Page, scrape

pytestmark = pytest.mark.cluster

ROUTER, PREFILL, DECODE, GATEWAY = (f"slos-serve-{name}" for name in ("router", "prefill", "decode", "gateway"))
ROUTER_SPANS = Counter((ROUTER, name) for name in ("plan", "queue", "prefill_wait", "prefill", "handover", "decode"))
PREFILL_SPANS = Counter((PREFILL, name) for name in ("worker.prefill", "engine.wait", "engine.prefill"))
DECODE_SPANS = Counter((DECODE, name) for name in ("worker.decode", "engine.wait", "kv.pull", "engine.decode"))
STANDSTILL_S = 1.3
OF_THE_PROCESS = ("process_", "target")
NOT_CHECKED = {router.CREDENTIALS_REFUSED, router.CREDENTIAL_FAULTS, router.QUOTA_REFUSALS}
"""Metrics of credentials and quotas, which these clusters do not check."""


def root(operation: str, model: str) -> Counter[tuple[str, str]]:
    return Counter({(ROUTER, f"{operation} {model}"): 1})


def context() -> tuple[str, str, str]:
    """A client's trace id, span id and header."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-01"


def metadata(received: Iterable[Any]) -> dict[str, str | bytes]:
    return dict(received)


def promised(prompt: list[int], max_tokens: int, tpot_s: float, ttft_s: float = 2.0) -> inference_pb2.GenerateRequest:
    request = greedy(prompt, max_tokens)
    request.tenant = "tests"
    request.contract.stages.add().prefill.ttft_s = ttft_s
    request.contract.stages.add().decode.tpot_s = tpot_s
    return request


def coherent(spans: list[CollectedSpan], client_span_id: str) -> None:
    """Every span hangs on another one of the trace, one of them on the client's."""
    known = {span.span_id for span in spans}
    assert len(known) == len(spans)
    assert [span.parent_id in known for span in spans].count(False) == 1
    assert client_span_id in {span.parent_id for span in spans}
    for span in spans:
        assert span.span.end_time_unix_nano >= span.span.start_time_unix_nano


def test_every_process_adds_its_spans_to_the_clients_trace(emulated: ClusterUnderTest, collector: Collector) -> None:
    emulated.wait_ready(4)
    trace_id, span_id, traceparent = context()
    call = emulated.stub.Generate(
        greedy([21, *range(30, 80)], 12),
        timeout=60,
        metadata=(("traceparent", traceparent), ("tracestate", "vendor=value"), ("x-request-id", f"mine-{span_id}")),
    )
    answer = Answer()
    for response in call:
        answer.take(response)
    assert answer.checked().finished is not None
    assert answer.finished is not None
    assert answer.finished.trace_id == trace_id
    assert metadata(call.trailing_metadata()) == {"x-request-id": f"mine-{span_id}", "x-trace-id": trace_id}
    model = emulated.state().model
    expected = root("text_completion", model) + ROUTER_SPANS + PREFILL_SPANS + DECODE_SPANS
    wait_until(lambda: collector.counted(trace_id).total() >= expected.total(), "the spans have come")
    assert collector.counted(trace_id) == expected
    spans = collector.trace(trace_id)
    coherent(spans, span_id)
    assert {span.span.trace_state for span in spans} == {"vendor=value"}
    by_name = {(span.service, span.name): span for span in spans}
    whole = by_name[(ROUTER, f"text_completion {model}")]
    assert whole.parent_id == span_id
    assert whole.attributes["gen_ai.request.id"] == f"mine-{span_id}"
    assert whole.attributes["gen_ai.usage.output_tokens"] == 12
    assert answer.admission is not None
    assert by_name[(PREFILL, "worker.prefill")].instance == answer.admission.prefill_worker_id
    assert by_name[(DECODE, "worker.decode")].instance == answer.admission.decode_worker_id
    pulled = by_name[(DECODE, "kv.pull")].attributes["slos.kv.bytes"]
    assert pulled == answer.finished.kv_pull.bytes > 0
    # The phases leave no gap, and the workers' spans lie where the router thinks they do.
    phases = [by_name[key] for key in ROUTER_SPANS]
    phases.sort(key=lambda item: item.span.start_time_unix_nano)
    assert [item.name for item in phases] == ["plan", "queue", "prefill_wait", "prefill", "handover", "decode"]
    for before, after in itertools.pairwise(phases):
        assert abs(before.span.end_time_unix_nano - after.span.start_time_unix_nano) < 1_000


def test_stages_of_a_contract_are_spans_of_their_own(emulated: ClusterUnderTest, collector: Collector) -> None:
    # The tiny model's text is made of its token ids, so that a text that it is sure to write can end the first stage.
    first = emulated.generate(greedy([40, *range(30, 60)], 12))
    marker = "".join(chunk.text for chunk in first.chunks if 3 <= chunk.index < 6)
    assert marker
    request = greedy([40, *range(30, 60)], 12)
    thinking = request.contract.stages.add().decode
    thinking.tpot_s, thinking.ends_with = 1.0, marker
    request.contract.stages.add().decode.tpot_s = 2.0
    answer = emulated.generate(request)
    assert answer.finished is not None
    assert len(answer.finished.achieved.stages) == 2
    trace_id = answer.finished.trace_id
    expected = {1: answer.finished.achieved.stages[0].tokens, 2: answer.finished.achieved.stages[1].tokens}
    wait_until(lambda: collector.counted(trace_id)[(ROUTER, "decode")] >= 2, "both stages have come")
    stages = [span.attributes for span in collector.trace(trace_id) if span.service == ROUTER and span.name == "decode"]
    assert {stage["slos.stage"]: stage["gen_ai.usage.output_tokens"] for stage in stages} == expected
    assert [stage["slos.target_tpot_s"] for stage in stages] == [1.0, 2.0]


def test_the_http_door_is_part_of_the_trace(emulated: ClusterUnderTest, door: HttpDoor, collector: Collector) -> None:
    trace_id, span_id, traceparent = context()
    model = emulated.state().model
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}
    headers = {"traceparent": traceparent, "x-request-id": "from-http"}
    answer = door.post("/v1/chat/completions", {**body, "ignore_eos": True}, headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == "from-http"
    assert answer.headers["x-trace-id"] == trace_id
    assert answer.json()["slo"]["trace_id"] == trace_id
    expected = root("chat", model) + ROUTER_SPANS + PREFILL_SPANS + DECODE_SPANS
    expected[(GATEWAY, "POST /v1/chat/completions")] = 1
    wait_until(lambda: collector.counted(trace_id).total() >= expected.total(), "the spans have come")
    assert collector.counted(trace_id) == expected
    coherent(collector.trace(trace_id), span_id)
    refused = door.post("/v1/completions", {"prompt": "hello", "max_tokens": -1}, headers)
    assert refused.status_code == 400
    assert (refused.headers["x-request-id"], refused.headers["x-trace-id"]) == ("from-http", trace_id)


def test_vllms_door_carries_the_trace_and_the_id(emulated: ClusterUnderTest, collector: Collector) -> None:
    trace_id, span_id, traceparent = context()
    request = vllm_engine_pb2.GenerateRequest(request_id=f"vllm-{span_id}")
    request.tokenized.input_ids.extend(range(30, 60))
    request.sampling_params.max_tokens = 4
    stub = vllm_engine_pb2_grpc.VllmEngineStub(emulated.channel)
    call = stub.Generate(request, timeout=60, metadata=(("traceparent", traceparent),))
    assert list(call)[-1].WhichOneof("response") == "complete"
    assert metadata(call.initial_metadata())["x-request-id"] == f"vllm-{span_id}"
    assert metadata(call.trailing_metadata())["x-trace-id"] == trace_id
    wait_until(lambda: (DECODE, "worker.decode") in collector.counted(trace_id), "the decode worker's spans have come")


def test_a_client_that_does_not_sample_gets_no_spans_and_keeps_its_trace_id(
    emulated: ClusterUnderTest, collector: Collector
) -> None:
    trace_id, _, traceparent = context()
    call = emulated.stub.Generate(
        greedy([22, *range(30, 60)], 4), timeout=60, metadata=(("traceparent", f"{traceparent[:-2]}00"),)
    )
    finished = [response.finished for response in call if response.HasField("finished")]
    assert [message.trace_id for message in finished] == [trace_id]
    after = emulated.generate(greedy([23, *range(30, 60)], 4))
    assert after.finished is not None
    later = after.finished.trace_id
    wait_until(lambda: (DECODE, "worker.decode") in collector.counted(later), "a later one has come")
    assert not collector.trace(trace_id)


def test_errors_name_the_request_and_its_trace(emulated: ClusterUnderTest, collector: Collector) -> None:
    trace_id, span_id, traceparent = context()
    with pytest.raises(grpc.RpcError) as raised:
        list(
            emulated.stub.Generate(
                greedy([], 4), timeout=60, metadata=(("traceparent", traceparent), ("x-request-id", f"bad-{span_id}"))
            )
        )
    trailing = metadata(raised.value.trailing_metadata())
    assert (trailing["x-request-id"], trailing["x-trace-id"]) == (f"bad-{span_id}", trace_id)
    assert "grpc-status-details-bin" in trailing
    wait_until(lambda: collector.counted(trace_id) == Counter({(ROUTER, "refused"): 1}), "the refusal has come")
    (refusal,) = collector.trace(trace_id)
    assert refusal.attributes["error.type"] == "INVALID_REQUEST"
    assert refusal.span.status.message


@dataclass(frozen=True, slots=True)
class Loss:
    """A promised request whose decode worker was killed, and what was said about it."""

    answer: Answer
    trace_id: str
    client_span_id: str
    killed: str


@pytest.fixture(scope="module")
def loss(emulated: ClusterUnderTest) -> Loss:
    """A promise that was missed for the loss of its worker. A promise may survive that, if its client was far ahead of
    it when the worker stood still; another one is lost then.
    """
    for attempt in range(5):
        lost = lose(emulated, attempt)
        assert lost.answer.finished is not None
        if not lost.answer.finished.achieved.kept:
            return lost
    pytest.fail("every promise was kept without its worker")


def lose(emulated: ClusterUnderTest, attempt: int) -> Loss:
    emulated.wait_ready(4)
    trace_id, span_id, traceparent = context()
    prompt = [24, attempt, *range(30, 70)]
    quote = inference_pb2.QuoteRequest(request=promised(prompt, 120, tpot_s=5.0))
    foreseen = emulated.stub.Quote(quote, timeout=10).admission.predicted
    request = promised(prompt, 120, tpot_s=1.5 * foreseen.tpot_bound_s)
    request.request_id = f"lost-{span_id}"
    answer = Answer()
    killed = ""
    for response in emulated.stub.Generate(request, timeout=60, metadata=(("traceparent", traceparent),)):
        answer.take(response)
        if not killed and len(answer.token_ids) >= 2:
            assert answer.admission is not None
            assert answer.admission.verdict == inference_pb2.VERDICT_GUARANTEED, answer.admission
            killed = answer.admission.decode_worker_id
            # It stands still for longer than the promise has slack and the router patience, and then it dies.
            process = emulated.workers[killed].process()
            assert process is not None
            process.send_signal(signal.SIGSTOP)
            time.sleep(STANDSTILL_S)
            emulated.kill(killed)
    answer.checked()
    assert killed
    emulated.start_again(killed)
    emulated.wait_ready(4)
    return Loss(answer, trace_id, span_id, killed)


def test_a_worker_killed_in_the_middle_leaves_one_coherent_trace(
    emulated: ClusterUnderTest, collector: Collector, loss: Loss
) -> None:
    assert loss.answer.finished is not None
    assert loss.answer.finished.restarts == 1
    model = emulated.state().model
    again = Counter({(ROUTER, "restart"): 1, (ROUTER, "handover"): 1, (ROUTER, "decode"): 1})
    # What the killed worker did died with it; the prompt was computed twice, by workers that live.
    expected = root("text_completion", model) + ROUTER_SPANS + again + PREFILL_SPANS + PREFILL_SPANS + DECODE_SPANS
    wait_until(lambda: collector.counted(loss.trace_id).total() >= expected.total(), "the spans have come")
    assert collector.counted(loss.trace_id) == expected
    spans = collector.trace(loss.trace_id)
    coherent(spans, loss.client_span_id)
    decode = next(span for span in spans if span.name == "worker.decode")
    assert decode.instance != loss.killed
    assert decode.attributes["slos.attempt"] == 1
    assert {span.attributes["slos.attempt"] for span in spans if span.name == "worker.prefill"} == {0, 1}
    whole = next(span for span in spans if span.parent_id == loss.client_span_id)
    assert whole.attributes["slos.restarts"] == 1
    assert whole.attributes["slos.ending"] == "missed"
    assert whole.attributes["slos.broken_by"] == "restart"


def test_log_lines_name_the_request_and_its_trace(emulated: ClusterUnderTest, loss: Loss) -> None:
    log = emulated.launcher.settings.launcher.run_dir / "router.log"
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    about = [line for line in lines if line.get("request_id") == f"lost-{loss.client_span_id}"]
    assert any("starts again at token" in line["message"] and line["level"] == "warning" for line in about)
    assert {line["trace_id"] for line in about} == {loss.trace_id}
    assert all({"time", "level", "process", "logger", "message"} <= line.keys() for line in lines)


def test_a_scrape_shows_the_catalogue_and_nothing_else(emulated: ClusterUnderTest, door: HttpDoor, loss: Loss) -> None:
    """After a promise kept, one missed, best effort, a refusal and a cancellation."""
    assert emulated.generate(promised([25, *range(30, 60)], 5, tpot_s=2.0)).finished is not None
    assert door.post("/v1/completions", {"prompt": "hello", "max_tokens": 2}).status_code == 200
    impossible = promised([26, *range(30, 60)], 5, tpot_s=0.001)
    impossible.contract.on_overload = contract_pb2.ON_OVERLOAD_REFUSE
    with pytest.raises(grpc.RpcError):
        list(emulated.stub.Generate(impossible, timeout=60))
    call = emulated.stub.Generate(greedy([27, *range(30, 60)], 200), timeout=60)
    next(call)
    call.cancel()
    emulated.wait_empty()
    state = emulated.state()
    pages = {Process.ROUTER: scrape(state.metrics_address), Process.GATEWAY: scrape(door.metrics_address)}
    for process, role in ((Process.PREFILL, "prefill"), (Process.DECODE, "decode")):
        used = [worker for worker in state.workers if worker.worker_id.startswith(role) and worker.steps]
        pages[process] = scrape(max(used, key=lambda worker: worker.steps).metrics_address)
    for process, page in pages.items():
        expected = [metric for metric in of_process(process) if metric not in NOT_CHECKED]
        catalogued = {metric.prometheus_name for metric in expected}
        shown = {
            f"{name}_total" if kind == "counter" and not name.endswith("_total") else name
            for name, kind in page.types.items()
            if not name.startswith(OF_THE_PROCESS)
        }
        assert shown == catalogued, process
        for metric in expected:
            optional = {"error_type"} if metric is router.REQUEST_DURATION else set()
            assert page.labels(metric) | optional == set(metric.prometheus_labels) | optional, metric.name
    _tells_what_happened(pages[Process.ROUTER], loss)


def _tells_what_happened(page: Page, loss: Loss) -> None:
    assert page.value(router.PROMISES_KEPT, slos_profile="own contract", slos_tenant="tests") >= 1
    assert page.value(router.PROMISES_MISSED, slos_tenant="tests", slos_phase="restart") == 1
    assert page.value(router.PROMISES_GUARANTEED, slos_tenant="tests") >= 2
    assert page.value(router.REQUESTS_REFUSED, slos_reason="IMPOSSIBLE_CONTRACT") >= 1
    assert page.value(router.REQUESTS_ENDED, slos_outcome="cancelled") >= 1
    assert page.value(router.REQUESTS_RESTARTED) >= 1
    assert page.value(router.WORKERS_LOST) >= 1
    assert page.value(router.WORKERS, slos_health="ready") == 4
    assert page.value(router.LEASED_BLOCKS_IN_USE) == 0
    assert page.value(router.PHASE_TIME, slos_phase="restart") > 0
    assert page.value(router.REQUEST_DURATION) == sum(
        value for labels, value in page.samples[router.REQUESTS_ENDED.prometheus_name]
    )
    assert loss.answer.finished is not None


def test_metrics_are_exported_to_the_collector_as_well(emulated: ClusterUnderTest, collector: Collector) -> None:
    assert emulated.generate(greedy([28, *range(30, 60)], 4)).finished is not None
    for service, process in ((ROUTER, Process.ROUTER), (PREFILL, Process.PREFILL), (DECODE, Process.DECODE)):
        always = {metric.name for metric in of_process(process) if ":" not in metric.name and metric.kind is Kind.GAUGE}
        wait_until(lambda: always <= collector.metric_names.get(service, set()), f"metrics of {service}")  # noqa: B023
