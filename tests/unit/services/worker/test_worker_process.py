"""A worker process from start to exit code: registration, drain, loss of its engine."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from decode_worker.policy import DecodePolicy
from prefill_worker.policy import PrefillPolicy
from services.config.settings import RedisSettings, WorkerSettings
from services.engine.kv.handle import LeaseOutcome
from services.engine.protocol import EngineFacts, EngineStartError, FinishReason, LeaseClosed, RequestOutput
from services.rpc.channel import open_channel
from services.state.connection import StateConnection
from services.state.registry import WorkerRecord, WorkerRegistry
from services.telemetry.settings import TelemetrySettings
from services.worker.process import WorkerProcess
from slos_serve.v1 import worker_pb2
from tests.support.audit_log import AuditLog
from tests.support.eventually import LONG_PATIENCE_S, PATIENCE_S, eventually
from tests.unit.services.worker.worker_support import (
    RunningWorker,
    ScriptedEngine,
    TestRouter,
    handle,
    running_worker,
    worker_process,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis_server import RedisServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def redis(redis_url: str, redis_prefix: str) -> RedisSettings:
    return RedisSettings(url=redis_url, prefix=redis_prefix, heartbeat_s=0.05, heartbeat_ttl_s=0.5)


async def registered(redis: RedisSettings, count: int) -> tuple[WorkerRecord, ...]:
    connection = StateConnection(redis.url, redis.timeout_s)
    registry = WorkerRegistry(connection, redis.prefix, redis.heartbeat_ttl_s)
    records: tuple[WorkerRecord, ...] = ()

    async def enough() -> bool:
        nonlocal records
        records = await registry.workers()
        return len(records) == count

    try:
        await eventually(enough)
    finally:
        await connection.close()
    return records


async def health(worker: RunningWorker, service: str = "slos_serve.v1.Worker") -> int:
    stub: Any = health_pb2_grpc.HealthStub(worker.channel())
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


async def test_a_worker_is_in_the_registry_while_it_serves(redis: RedisSettings) -> None:
    async with running_worker(DecodePolicy(), redis) as worker:
        (record,) = await registered(redis, 1)
        assert (record.worker_id, record.address, record.draining) == ("worker-0", worker.process.address, False)
        assert record.engine_epoch == "epoch"
        assert await health(worker) == SERVING
        assert await health(worker, "") == SERVING
    assert worker.engine.stopped
    assert worker.exit.result() == 0
    await registered(redis, 0)


async def test_drain_finishes_requests_and_leases_and_takes_nothing_new(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        await router.submit("running")
        (running,) = await worker.engine.until_asked(1)
        await router.submit("exported", export_kv=True)
        exported = (await worker.engine.until_asked(2))[1]
        worker.engine.step(RequestOutput(exported, (1,), finish_reason=FinishReason.LENGTH, kv=handle("x")))
        await router.next_of("step")
        assert (await router.stub.Drain(worker_pb2.DrainRequest())).running_requests == 1
        await router.next_of("draining")
        await router.submit("late")
        failed = await router.next_of("request_failed")
        assert (failed.request_id, failed.kind) == ("late", worker_pb2.FAILURE_KIND_NOT_ACCEPTING)
        assert await health(worker) == NOT_SERVING
        assert await health(worker, "") == SERVING
        (record,) = await registered(redis, 1)
        assert record.draining
        assert (await worker.router("r2")) is not None

        worker.engine.step(RequestOutput(running, (2,), finish_reason=FinishReason.STOP))
        assert (await router.next_of("step")).outputs[0].request_id == "running"
        await asyncio.sleep(0.1)
        assert not worker.exit.done(), "a lease is open"
        worker.engine.say(LeaseClosed("x", LeaseOutcome.PULLED))
        assert (await router.next_of("lease_closed")).lease_id == "x"
        assert await router.ending() == ("OK", "")
        assert await worker.exit_code() == 0
        await registered(redis, 0)


async def test_drain_cuts_off_what_outlives_its_grace(
    redis: RedisSettings, caplog: pytest.LogCaptureFixture, audit_log: AuditLog
) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        await router.submit("a")
        await worker.engine.until_asked(1)
        await router.stub.Drain(worker_pb2.DrainRequest(grace_s=0.1))
        assert (await router.ending())[0] == "UNAVAILABLE"
        assert await worker.exit_code() == 0
        assert "cut off: 1 requests, 0 leases" in caplog.text
        assert ("drain", "done", "worker-0") in audit_log.told()
        assert worker.engine.stopped


async def test_a_later_drain_changes_nothing_about_the_grace(redis: RedisSettings) -> None:
    async with running_worker(DecodePolicy(), redis, drain_grace_s=3_600.0) as worker:
        router = await worker.router("r1")
        await router.submit("running")
        await worker.engine.until_asked(1)
        worker.process.request_drain(0.05)
        worker.process.request_drain(3_600.0)
        assert await worker.exit_code() == 0


@pytest.mark.parametrize(("name", "expected"), [("", "model"), ("served-name", "served-name")])
async def test_a_worker_serves_its_model_under_the_configured_name(
    redis: RedisSettings, name: str, expected: str
) -> None:
    engine = ScriptedEngine()
    process = WorkerProcess("w", WorkerSettings(), redis, DecodePolicy(), engine, TelemetrySettings(), name)
    worker = await RunningWorker(process, engine).ready()
    try:
        assert (await TestRouter(worker.channel()).hello("r1")).model == expected
        (record,) = await registered(redis, 1)
        assert record.model == expected
    finally:
        await worker.close()


@pytest.mark.parametrize("grace_s", [-1.0, float("nan"), float("inf")])
async def test_a_grace_that_is_none(redis: RedisSettings, grace_s: float) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        with pytest.raises(grpc.aio.AioRpcError, match="grace_s: must be finite") as raised:
            await router.stub.Drain(worker_pb2.DrainRequest(grace_s=grace_s))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not worker.exit.done()


@pytest.mark.parametrize("draining", [False, True])
async def test_a_dead_engine_ends_the_worker_with_code_1(redis: RedisSettings, draining: bool) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        await router.submit("a")
        await worker.engine.until_asked(1)
        if draining:
            await router.stub.Drain(worker_pb2.DrainRequest())
        worker.engine.die()
        code, details = await router.ending()
        assert code == "UNAVAILABLE"
        assert "the engine is dead: killed by the test" in details
        assert await worker.exit_code() == 1
        await registered(redis, 0)
        assert worker.engine.stopped


async def test_an_engine_that_stands_still_is_dead(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis, step_timeout_s=0.3) as worker:
        router = await worker.router("r1")
        await asyncio.sleep(0.5)
        await router.submit("a")
        (name,) = await worker.engine.until_asked(1)
        for _ in range(5):
            await asyncio.sleep(0.1)
            worker.engine.step(RequestOutput(name, (1,)))
        assert not worker.exit.done()
        assert await worker.exit_code() == 1
        code, details = await router.ending()
        assert code == "UNAVAILABLE"
        assert "1 requests, but no sign of life" in details


async def test_an_address_in_use_is_said_before_the_engine_is_loaded(
    redis: RedisSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        port = int(worker.process.address.rpartition(":")[2])
        engine = ScriptedEngine()
        assert await worker_process(PrefillPolicy(), engine, redis, "worker-1", port=port).run() == 1
        assert f"worker worker-1 cannot start: cannot listen on 127.0.0.1:{port}: the address is in use" in caplog.text
        assert await health(worker) == SERVING


async def test_an_engine_that_cannot_start(redis: RedisSettings, caplog: pytest.LogCaptureFixture) -> None:
    class BrokenEngine(ScriptedEngine):
        async def start(self) -> EngineFacts:
            raise EngineStartError("no memory for the KV cache")

    engine = BrokenEngine()
    assert await worker_process(PrefillPolicy(), engine, redis).run() == 1
    assert "worker worker-0 cannot start: no memory for the KV cache" in caplog.text
    assert engine.stopped


async def test_a_worker_stopped_while_its_engine_loads(redis: RedisSettings) -> None:
    class SlowEngine(ScriptedEngine):
        async def start(self) -> EngineFacts:
            await asyncio.sleep(60)
            raise AssertionError("the worker waited")

    engine = SlowEngine()
    process = worker_process(PrefillPolicy(), engine, redis)
    run = asyncio.create_task(process.run())
    await asyncio.sleep(0.05)
    process.request_drain()
    async with asyncio.timeout(PATIENCE_S):
        assert await run == 0
    assert engine.stopped


async def test_a_worker_started_before_redis_serves_and_registers_later(
    redis_server: RedisServer, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    redis = RedisSettings(url=redis_server.url, prefix=redis_prefix, heartbeat_s=0.05, heartbeat_ttl_s=0.5)
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        await router.submit("a")
        (name,) = await worker.engine.until_asked(1)
        await asyncio.sleep(0.2)
        redis_server.start()
        await registered(redis, 1)
        redis_server.stop()
        worker.engine.step(RequestOutput(name, (1,), finish_reason=FinishReason.STOP))
        assert (await router.next_of("step")).outputs[0].request_id == "a"
        await asyncio.sleep(0.2)
        redis_server.start()
        await registered(redis, 1)
    assert caplog.text.count("is unreachable") == 2
    assert caplog.text.count("is back after") == 2


async def test_the_second_of_two_workers_with_one_id_ends(
    redis: RedisSettings, caplog: pytest.LogCaptureFixture
) -> None:
    class OtherEngine(ScriptedEngine):
        async def start(self) -> EngineFacts:
            facts = await super().start()
            return EngineFacts(**{name: getattr(facts, name) for name in facts.__slots__} | {"engine_epoch": "other"})

    async with running_worker(PrefillPolicy(), redis) as worker:
        await registered(redis, 1)
        second = asyncio.create_task(worker_process(DecodePolicy(), OtherEngine(), redis).run())
        async with asyncio.timeout(PATIENCE_S):
            assert await second == 1
        assert f"worker id 'worker-0' is taken by the prefill worker at {worker.process.address}" in caplog.text
        (record,) = await registered(redis, 1)
        assert record.engine_epoch == "epoch"
        assert not worker.exit.done()


async def test_a_url_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    assert await worker_process(PrefillPolicy(), ScriptedEngine(), RedisSettings(url="localhost")).run() == 1
    assert "worker worker-0 cannot start: redis.url 'localhost'" in caplog.text


PROGRAM = """
import asyncio, sys
from {role}_worker.app import serve
from services.config.load import load_settings
sys.exit(asyncio.run(serve(load_settings())))
"""


class WorkerProgram:
    """A worker in a process of its own, with the emulated engine."""

    def __init__(self, role: str, redis: RedisSettings, directory: Path, **options: str) -> None:
        self.log = directory / f"{role}.log"
        environment = {
            "SLOS_SERVE_REDIS__URL": redis.url,
            "SLOS_SERVE_REDIS__PREFIX": redis.prefix,
            "SLOS_SERVE_REDIS__HEARTBEAT_S": "0.1",
            "SLOS_SERVE_ENGINE__KIND": "emulated",
            **options,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(role=role)], env={**os.environ, **environment}, stderr=log
            )

    def text(self) -> str:
        return self.log.read_text()

    def wait(self) -> int:
        return self.process.wait(timeout=LONG_PATIENCE_S)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_sigterm_drains_a_real_process(redis: RedisSettings, tmp_path: Path, role: str) -> None:
    program = WorkerProgram(role, redis, tmp_path)
    try:
        (record,) = await registered(redis, 1)
        assert record.role.value == role
        assert record.emulated
        assert record.worker_id.startswith(f"{role}-")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        await registered(redis, 0)
        assert "SIGTERM received" in program.text()
        assert "Traceback" not in program.text()
        assert not [line for line in program.text().splitlines() if record.worker_id not in line]
    finally:
        program.process.kill()


async def test_a_second_sigterm_ends_a_real_process_at_once(redis: RedisSettings, tmp_path: Path) -> None:
    slow = {"SLOS_SERVE_ENGINE__EMULATED__OVERHEAD_S": "30"}
    program = WorkerProgram("decode", redis, tmp_path, **slow)
    try:
        (record,) = await registered(redis, 1)
        async with open_channel(record.address, 1024 * 1024) as channel:
            router = TestRouter(channel)
            await router.hello("r1")
            await router.submit("a", token_ids=(20, 21, 22))
            await asyncio.sleep(0.1)
            program.process.send_signal(signal.SIGTERM)
            await router.next_of("draining")
            assert program.process.poll() is None
            began_s = time.monotonic()
            program.process.send_signal(signal.SIGTERM)
            assert program.wait() == 128 + signal.SIGTERM
            assert time.monotonic() - began_s < 10
    finally:
        program.process.kill()


async def test_a_worker_without_redis_url_says_what_is_missing(redis: RedisSettings, tmp_path: Path) -> None:
    program = WorkerProgram("prefill", redis, tmp_path, SLOS_SERVE_REDIS__URL="")
    assert program.wait() == 1
    assert "redis.url is empty" in program.text()


async def test_a_port_in_use_ends_a_real_process_with_code_1(redis: RedisSettings, tmp_path: Path) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        port = worker.process.address.rpartition(":")[2]
        program = WorkerProgram("decode", redis, tmp_path, SLOS_SERVE_DECODE_WORKER__PORT=port)
        assert await asyncio.to_thread(program.wait) == 1
        assert "the address is in use" in program.text()
