"""The commands that workers get say what is left to do, and by when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router.cluster import commands
from router.requests.held_lease import HeldLease
from router.requests.live_request import LiveRequest
from router.requests.phases import PhaseClock
from services.engine.kv.handle import KvHandle
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.slo.attainment import AttainmentMeter
from services.slo.latency_forecast import Forecast, Placement
from slos_serve.v1 import worker_pb2
from tests.support.tiny_model import write_tiny_model
from tests.unit.router.router_support import FACTS, contract, parsed

ARRIVAL_S = 400.0
NOW_S = ARRIVAL_S + 0.25


def live(model_dir: Path, *, guaranteed: bool = True) -> LiveRequest:
    wanted = contract(ttft_s=0.5, tpot_s=0.1)
    return LiveRequest(
        parsed=parsed("r", 10, wanted),
        contract=wanted,
        meter=AttainmentMeter(wanted, ARRIVAL_S),
        clock=PhaseClock(ARRIVAL_S),
        text=Tokenizer(model_dir).stream(skip_special_tokens=True),
        stops=StopStrings(()),
        placement=Placement("p1", "d1", ARRIVAL_S + 0.4, Forecast(0.1, 0.2), Forecast(0.05, 0.1)),
        guaranteed=guaranteed,
    )


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def deadline_in_s(command: worker_pb2.SessionRequest) -> float | None:
    return command.submit.deadline_in_s if command.submit.HasField("deadline_in_s") else None


def test_a_planned_prompt_is_due_when_the_plan_says(tiny_model: Path) -> None:
    command = commands.submit(live(tiny_model), NOW_S, 60, export_kv=True)
    assert deadline_in_s(command) == pytest.approx(0.15)
    assert command.submit.tpot_s == pytest.approx(0.1)
    assert (command.submit.best_effort, command.submit.export_kv, command.submit.promised_tokens) == (False, True, 60)


def test_best_effort_is_due_when_its_contract_says_until_that_is_missed(tiny_model: Path) -> None:
    request = live(tiny_model, guaranteed=False)
    assert deadline_in_s(commands.submit(request, NOW_S, 0)) == pytest.approx(0.25)
    request.take_tokens(worker_pb2.RequestOutput(token_ids=[70]), ARRIVAL_S + 0.6)
    late = commands.submit(request, NOW_S, 0)
    assert deadline_in_s(late) is None
    assert not late.submit.HasField("tpot_s")
    assert late.submit.best_effort


def test_a_stream_is_due_at_its_next_token_even_after_a_missed_one(tiny_model: Path) -> None:
    request = live(tiny_model)
    request.take_tokens(worker_pb2.RequestOutput(token_ids=[70]), ARRIVAL_S + 0.6)
    command = commands.submit(request, ARRIVAL_S + 0.65, 0)
    assert deadline_in_s(command) == pytest.approx(0.05)
    assert list(command.submit.token_ids) == [*request.parsed.prompt, 70]
    assert command.submit.generated_tokens == 1


def test_a_kv_cache_is_pulled_while_its_lease_lasts(tiny_model: Path) -> None:
    handle = KvHandle("l", "p1", "1", 30.0, 10, 1000, FACTS.compatibility, "{}", "secret")
    command = commands.submit(live(tiny_model), NOW_S, 0, lease=HeldLease(handle, NOW_S - 12.0))
    assert command.submit.kv_source.lease_id == "l"
    assert command.submit.kv_source.lease_remaining_s == pytest.approx(18.0)


def test_the_salt_goes_to_both_workers_and_is_shown_nowhere(tiny_model: Path) -> None:
    request = live(tiny_model)
    request.parsed = replace(request.parsed, cache_salt="ab" * 16)
    handle = KvHandle("l", "p1", "1", 30.0, 10, 1000, FACTS.compatibility, "{}", "secret")
    prefill = commands.submit(request, NOW_S, 0, export_kv=True)
    decode = commands.submit(request, NOW_S, 0, lease=HeldLease(handle, NOW_S))
    assert prefill.submit.cache_salt == decode.submit.cache_salt == "ab" * 16
    assert "ab" * 16 not in repr(request)


def test_only_a_guaranteed_rate_is_to_be_expected(tiny_model: Path) -> None:
    assert commands.expect(live(tiny_model), 60).expect.tpot_s == pytest.approx(0.1)
    assert not commands.expect(live(tiny_model, guaranteed=False), 60).expect.HasField("tpot_s")


def test_an_abort_names_the_attempt(tiny_model: Path) -> None:
    request = live(tiny_model)
    request.start_again(NOW_S)
    command = commands.abort(request)
    assert (command.abort.request_id, command.abort.attempt) == ("r", 1)
