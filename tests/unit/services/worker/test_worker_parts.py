"""The parts of a worker that need neither gRPC nor an engine."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import pytest

from services import wire
from services.config.settings import Settings
from services.engine.emulated.engine import EmulatedEngine
from services.engine.protocol import EngineStartError, RequestOutput
from services.rpc.errors import OverloadedError
from services.state.registry import WorkerRole
from services.telemetry.logs import LineFormatter
from services.worker.engine_factory import create_engine
from services.worker.identity import default_worker_id
from services.worker.outbox import Outbox
from services.worker.watchdog import Stall, patience_s
from slos_serve.v1 import worker_pb2
from tests.support.tiny_model import VOCABULARY_SIZE, write_tiny_model
from tests.unit.services.worker.worker_support import handle


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def load(used: int) -> worker_pb2.SessionResponse:
    return worker_pb2.SessionResponse(load=worker_pb2.WorkerLoad(kv_blocks_used=used))


async def read_all(outbox: Outbox) -> list[worker_pb2.SessionResponse]:
    async with asyncio.timeout(1):
        return [message async for message in outbox.messages()]


async def test_an_outbox_keeps_order_and_delivers_what_was_queued_before_its_end() -> None:
    outbox = Outbox(10)
    for used in range(3):
        outbox.put(load(used))
    outbox.end()
    outbox.put(load(99))
    assert [message.load.kv_blocks_used for message in await read_all(outbox)] == [0, 1, 2]
    assert outbox.error is None


async def test_a_full_outbox_closes_and_lets_go_of_its_memory() -> None:
    outbox = Outbox(3)
    for used in range(4):
        outbox.put(load(used))
    assert isinstance(outbox.error, OverloadedError)
    assert len(outbox) == 0
    assert await read_all(outbox) == []


async def test_an_outbox_takes_as_many_messages_as_it_says_and_the_first_error_stands() -> None:
    outbox = Outbox(3)
    for used in range(3):
        outbox.put(load(used))
    assert (len(outbox), outbox.error) == (3, None)
    first, second = OverloadedError("first"), OverloadedError("second")
    outbox.fail(first)
    outbox.fail(second)
    assert outbox.error is first
    ended = Outbox(3)
    ended.end()
    ended.fail(second)
    assert ended.error is None, "it had ended in order"


async def test_a_lease_runs_on_while_its_message_waits() -> None:
    clock = Clock()
    outbox = Outbox(10, clock)
    report = worker_pb2.StepReport(
        outputs=[wire.output_to_wire(RequestOutput("r", (1,), kv=handle(lease_remaining_s=30.0)), "r", 0)]
    )
    outbox.put(worker_pb2.SessionResponse(step=report))
    clock.now_s += 12.0
    outbox.end()
    (message,) = await read_all(outbox)
    assert message.step.outputs[0].kv.lease_remaining_s == 18.0


def test_a_stall_counts_only_time_with_requests_and_without_progress() -> None:
    stall = Stall()
    for _ in range(5):
        stall = stall.after(1.0, 1.0, progressed=False, requests=2)
    assert stall.stalled_s == 5.0
    assert stall.after(1.0, 1.0, progressed=True, requests=2).stalled_s == 0.0
    assert stall.after(1.0, 1.0, progressed=False, requests=0).stalled_s == 0.0


def test_a_process_that_was_stopped_does_not_blame_its_engine() -> None:
    assert Stall().after(3600.0, 1.0, progressed=False, requests=1).stalled_s == 2.0


def test_leases_may_hold_all_blocks_until_they_expire() -> None:
    assert patience_s(60.0, 30.0, open_leases=0) == 60.0
    assert patience_s(60.0, 30.0, open_leases=2) == 90.0


def test_worker_ids_are_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    monkeypatch.setattr("os.getpid", lambda: 123)
    assert default_worker_id(WorkerRole.DECODE) == "decode-node-7-123"


def test_a_log_record_is_one_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, __file__, 1, "it %s", ("broke",), sys.exc_info())
    line = LineFormatter("worker-0").format(record)
    assert "\n" not in line
    assert " ERROR   worker-0  it broke | Traceback" in line
    assert line.endswith("ValueError: first | second")


def test_the_emulated_engine_needs_no_torch_and_no_model_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    settings = Settings.model_validate({"engine": {"kind": "emulated"}})
    assert isinstance(create_engine(settings, "w", "127.0.0.1"), EmulatedEngine)


@pytest.mark.parametrize(
    ("stated", "vocabulary_size", "eos_token_id"),
    [({}, VOCABULARY_SIZE, 2), ({"vocabulary_size": 500}, 500, 2), ({"eos_token_id": 7}, VOCABULARY_SIZE, 7)],
)
async def test_an_emulated_engine_takes_from_the_model_what_the_configuration_leaves_open(
    tmp_path: Path, stated: dict[str, int], vocabulary_size: int, eos_token_id: int
) -> None:
    model = str(write_tiny_model(tmp_path / "tiny"))
    settings = Settings.model_validate({"engine": {"kind": "emulated", "emulated": stated}, "model": {"path": model}})
    engine = create_engine(settings, "w", "127.0.0.1")
    facts = await engine.start()
    await engine.shutdown()
    assert (facts.model, facts.vocabulary_size, facts.eos_token_ids) == ("tiny", vocabulary_size, (eos_token_id,))
    assert facts.compatibility.model_fingerprint == "emulated tiny"


async def test_the_emulated_engine_of_the_built_in_model_has_its_name() -> None:
    for name, expected in (("", "SmolLM2-135M-Instruct"), ("mine", "mine")):
        settings = Settings.model_validate({"engine": {"kind": "emulated"}, "model": {"name": name}})
        engine = create_engine(settings, "w", "127.0.0.1")
        assert (await engine.start()).model == expected
        await engine.shutdown()


@pytest.mark.parametrize("kind", ["vllm", "emulated"])
def test_a_model_that_is_not_there(kind: str) -> None:
    settings = Settings.model_validate({"engine": {"kind": kind}, "model": {"path": "/no/such/model"}})
    with pytest.raises(EngineStartError, match=r"model\.path: no directory /no/such/model"):
        create_engine(settings, "w", "127.0.0.1")


async def test_kv_caches_are_offered_where_the_worker_listens_unless_another_address_is_stated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []

    async def start(_: object, host: str) -> None:
        started.append(host)

    monkeypatch.setattr("services.engine.kv.hand_over.KvHandOver.start", start)
    for kv_host, worker_host in (("", "10.0.0.7"), ("10.0.0.8", "10.0.0.7")):
        settings = Settings.model_validate({"engine": {"kind": "emulated", "emulated": {"kv_host": kv_host}}})
        engine = create_engine(settings, "w", worker_host)
        await engine.start()
        await engine.shutdown()
    assert started == ["10.0.0.7", "10.0.0.8"]
