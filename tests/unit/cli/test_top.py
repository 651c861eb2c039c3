"""What `slos-serve top` shows of the cluster."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from cli.top_view import PHASES, Sample, bar, phase_bar, rate, screen, sparkline, steps_rate
from router.requests.phases import Phase
from slos_serve import (
    ClusterState,
    Counters,
    Phases,
    ProfileState,
    Trouble,
    WorkerHealth,
    WorkerRole,
    WorkerState,
)
from slos_serve.cluster import cluster_state_from_wire
from slos_serve.v1 import inference_pb2

COUNTERS = Counters(
    received=100,
    guaranteed=60,
    best_effort=30,
    refused=10,
    finished=80,
    cancelled=1,
    failed=2,
    kept=58,
    missed=2,
    restarts=3,
    kv_recomputes=0,
    workers_lost=1,
    rounds=50,
    planning_s=0.1,
)
WORKER = WorkerState(
    worker_id="decode-0",
    role=WorkerRole.DECODE,
    address="127.0.0.1:1",
    engine_epoch="e",
    health=WorkerHealth.READY,
    running_requests=7,
    waiting_requests=1,
    kv_blocks_total=100,
    kv_blocks_used=50,
    kv_blocks_leased=0,
    steps=1000,
    last_step_s=0.012,
    step_time_scale=1.0,
    step_time_error=0.04,
    step_time_bound=1.25,
    emulated=True,
    detail="",
)
CHATBOT = ProfileState(
    profile="chatbot",
    kept=9,
    missed=1,
    best_effort=4,
    cancelled=0,
    failed=0,
    refused={"PREFILL_TIME": 3, "KV_MEMORY": 2},
    missed_in={"decode": 1},
    mean_phases=Phases(0.0, 0.001, 0.0, 0.1, 0.05, 0.4, 0.0),
)
STATE = ClusterState(
    router_id="router-1",
    model="smollm2",
    uptime_s=75.0,
    workers=(WORKER,),
    queued_requests=4,
    running_requests=7,
    counters=COUNTERS,
    redis_connected=True,
    warnings=("no prefill worker is connected",),
    held_requests=2,
    console_url="http://127.0.0.1:8001/",
    recent_s=300.0,
    profiles=(CHATBOT,),
    trouble=(Trouble("req-1", "chatbot", 12.0, "TTFT 0.600 s > 0.500 s", "prefill_wait", "prefill-0", "decode-0", 0),),
)


def shown(samples: list[Sample], away: str = "", now_s: float = 0.0, width: int = 160) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(screen(samples, "127.0.0.1:50051", away, now_s=now_s))
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def line_with(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


def test_promises_pools_queue_and_trouble_are_on_one_screen() -> None:
    text = shown([Sample(0.0, STATE)])
    assert "queued 4" in text
    assert "without verdict 2" in text
    row = line_with(text, "│ chatbot").split()
    assert row[1:4] == ["chatbot", "9", "1"]
    assert "90.0%" in row
    assert "5" in row, "refused, whatever bound"
    worker = line_with(text, "│ decode-0")
    assert all(figure in worker for figure in ("ready", "7", "1", "50%", "12.0 ms", "1.25 x", "4.0%"))
    assert "TTFT 0.600 s > 0.500 s" in line_with(text, "req-1")
    assert "none is registered" in text, "the prefill pool is empty"
    assert "no prefill worker is connected" in text
    assert "emulated engines" in text
    assert "http://127.0.0.1:8001/" in text


def test_one_of_several_processes_says_so() -> None:
    assert "process" not in shown([Sample(0.0, STATE)])
    assert "process 2 of 4" in shown([Sample(0.0, replace(STATE, process=2, processes=4))])


def test_rates_are_those_between_the_last_two_looks() -> None:
    later = replace(STATE, workers=(replace(WORKER, steps=1150),), counters=replace(COUNTERS, received=130, rounds=50))
    samples = [Sample(0.0, STATE), Sample(2.0, later)]
    assert rate(samples, "received") == pytest.approx(15.0)
    assert rate(samples, "rounds") == 0.0
    assert steps_rate(samples, later.workers[0]) == pytest.approx(75.0)
    assert "75.0" in line_with(shown(samples), "│ decode-0")


def test_no_rate_is_made_up() -> None:
    assert rate([Sample(0.0, STATE)], "received") is None
    restarted = replace(STATE, counters=replace(COUNTERS, received=3))
    assert rate([Sample(0.0, STATE), Sample(1.0, restarted)], "received") is None, "another router than before"
    other_engine = replace(WORKER, engine_epoch="f", steps=5)
    assert steps_rate([Sample(0.0, STATE), Sample(1.0, STATE)], other_engine) is None


def test_a_router_that_is_away_is_said_to_be() -> None:
    assert "no router answers at 127.0.0.1:50051: refused" in shown([], "refused")
    text = shown([Sample(10.0, STATE)], "connection refused", now_s=25.0)
    assert "what is below is 15 s old" in text
    assert "chatbot" in text


def test_markup_in_names_is_text() -> None:
    name = "[red]x[/][link=http://e]y"
    hostile = replace(
        STATE,
        trouble=(replace(STATE.trouble[0], request_id=name),),
        workers=(replace(WORKER, worker_id=name),),
        profiles=(replace(CHATBOT, profile=name),),
    )
    assert shown([Sample(0.0, hostile)], width=200).count(name) == 3


def test_it_fits_a_narrow_terminal() -> None:
    assert max(len(line) for line in shown([Sample(0.0, STATE)], width=80).splitlines()) <= 80


def test_bars() -> None:
    assert bar(0.5, 10).plain == "█████░░░░░"
    assert bar(7.0, 4).plain == "████"
    assert sparkline([0, 4, 8]) == "▁▅█"
    assert sparkline([0, 0]) == "▁▁"
    phases = Phases(0.0, 0.0, 0.0, 0.25, 0.25, 0.5, 0.0)
    assert [(span.style, span.end - span.start) for span in phase_bar(phases, 8, 1.0).spans] == [
        (PHASES["prefill"], 2),
        (PHASES["handover"], 2),
        (PHASES["decode"], 4),
    ]
    assert list(PHASES) == [phase.value for phase in Phase]


def test_what_clients_are_not_told_is_not_made_up() -> None:
    state = cluster_state_from_wire(inference_pb2.ClusterState(ready=True, model="smollm2"))
    text = shown([Sample(10.0, state)])
    assert "model smollm2  ready" in text
    assert "for operators" in text
    assert not any(word in text for word in ("unreachable", "up 0 s", "queued", "none is registered"))
    assert "q quits" in text
