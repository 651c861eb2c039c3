"""A prefill and a decode worker with emulated engines, and a router that hands a request from one to the other."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from decode_worker.policy import DecodePolicy
from prefill_worker.policy import PrefillPolicy
from services import wire
from services.config.settings import RedisSettings, WorkerSettings
from services.engine.emulated.config import EmulatedEngineConfig
from services.engine.emulated.engine import EmulatedEngine
from services.engine.protocol import FinishReason, RequestOutput, SamplingOptions
from services.rpc.channel import open_channel
from services.telemetry.settings import TelemetrySettings
from services.worker.process import WorkerProcess
from slos_serve.v1 import worker_pb2
from tests.support.eventually import PATIENCE_S, eventually
from tests.unit.services.worker.worker_support import MIB, TestRouter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.worker.policy import RolePolicy

CONFIG = EmulatedEngineConfig(overhead_s=0.002, step_time_noise=0.0, link_latency_s=0.0, kv_blocks=64)
PROMPT = tuple(range(20, 120))
GREEDY = SamplingOptions(max_tokens=12, temperature=0.0, ignore_eos=True)


@pytest.fixture
def redis(redis_url: str, redis_prefix: str) -> RedisSettings:
    return RedisSettings(url=redis_url, prefix=redis_prefix, heartbeat_s=0.1)


@contextlib.asynccontextmanager
async def serving(
    policy: RolePolicy, redis: RedisSettings, config: EmulatedEngineConfig = CONFIG
) -> AsyncIterator[tuple[WorkerProcess, TestRouter]]:
    name = f"{policy.role.value}-0"
    engine = EmulatedEngine(config, model="model", model_fingerprint="fingerprint", worker_id=name)
    process = WorkerProcess(name, WorkerSettings(drain_grace_s=5.0), redis, policy, engine, TelemetrySettings())
    run = asyncio.create_task(process.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await process.serving.wait()
        async with open_channel(process.address, MIB) as channel:
            router = TestRouter(channel)
            await router.hello("router-0")
            yield process, router
    finally:
        process.request_drain(0.0)
        async with asyncio.timeout(PATIENCE_S):
            assert await run == 0


async def outputs_until_finished(router: TestRouter) -> list[RequestOutput]:
    outputs: list[RequestOutput] = []
    while not outputs or outputs[-1].finish_reason is None:
        report = await router.next_of("step")
        outputs += [wire.output_from_wire(message) for message in report.outputs]
    return outputs


async def alone(redis: RedisSettings) -> tuple[int, ...]:
    """What one worker generates from the prompt by itself."""
    async with serving(DecodePolicy(), redis) as (_, router):
        await router.submit("r", token_ids=PROMPT, sampling=GREEDY)
        return tuple(token for output in await outputs_until_finished(router) for token in output.token_ids)


async def used_blocks(router: TestRouter) -> int:
    description = (await router.stub.Describe(worker_pb2.DescribeRequest())).description
    return int(description.load.kv_blocks_used)


async def test_a_handover_continues_as_one_worker_would(redis: RedisSettings) -> None:
    expected = await alone(redis)
    prefill_policy, decode_policy = PrefillPolicy(), DecodePolicy()
    async with serving(prefill_policy, redis) as (_, prefill), serving(decode_policy, redis) as (_, decode):
        await prefill.submit("r", token_ids=PROMPT, sampling=GREEDY, export_kv=True)
        (first,) = await outputs_until_finished(prefill)
        assert first.finish_reason is FinishReason.LENGTH
        assert first.kv is not None
        assert first.kv.tokens == len(PROMPT)
        await decode.submit(
            "r", token_ids=PROMPT + first.token_ids, generated_tokens=1, sampling=GREEDY, kv_source=first.kv
        )
        rest = await outputs_until_finished(decode)
        assert first.token_ids + tuple(token for output in rest for token in output.token_ids) == expected
        timings = rest[0].timings
        assert timings is not None
        assert timings.kv_pull is not None
        assert timings.kv_pull.kv_bytes == first.kv.kv_bytes
        closed = await prefill.next_of("lease_closed")
        assert (closed.lease_id, closed.outcome) == (first.kv.lease_id, worker_pb2.LEASE_OUTCOME_PULLED)
        assert (decode_policy.pulls, decode_policy.recomputes, prefill_policy.open_leases) == (1, 0, 0)
        assert (await used_blocks(prefill), await used_blocks(decode)) == (0, 0)


@pytest.mark.parametrize("fault", ["released", "reused", "other_block_size", "owner_gone"])
async def test_a_kv_cache_that_cannot_be_had_is_computed_again(redis: RedisSettings, fault: str) -> None:
    expected = await alone(redis)
    decode_policy = DecodePolicy()
    rest: list[RequestOutput] = []
    config = replace_block_size(CONFIG) if fault == "other_block_size" else CONFIG
    async with serving(decode_policy, redis, config) as (_, decode):
        async with serving(PrefillPolicy(), redis) as (_, prefill):
            await prefill.submit("r", token_ids=PROMPT, sampling=GREEDY, export_kv=True)
            (first,) = await outputs_until_finished(prefill)
            kv = first.kv
            assert kv is not None
            if fault == "released":
                await prefill.release_kv(kv.lease_id)
                await prefill.next_of("lease_closed")
            elif fault == "reused":
                kv = replace(kv, engine_epoch="of an earlier start")
            if fault != "owner_gone":
                rest = await continued(decode, first, kv)
        if fault == "owner_gone":
            rest = await continued(decode, first, kv)
    assert first.token_ids + tuple(token for output in rest for token in output.token_ids) == expected
    timings = rest[0].timings
    assert timings is not None
    assert timings.kv_recompute_reason
    assert (decode_policy.pulls, decode_policy.recomputes) == (0, 1)


def replace_block_size(config: EmulatedEngineConfig) -> EmulatedEngineConfig:
    return config.model_copy(update={"block_tokens": 32})


async def continued(decode: TestRouter, first: RequestOutput, kv: object) -> list[RequestOutput]:
    await decode.submit("r", token_ids=PROMPT + first.token_ids, generated_tokens=1, sampling=GREEDY, kv_source=kv)
    return await outputs_until_finished(decode)


@pytest.mark.parametrize("phase", ["prefilling", "exported", "decoding"])
async def test_a_router_that_vanishes_leaves_no_block_behind(redis: RedisSettings, phase: str) -> None:
    slow = CONFIG.model_copy(update={"overhead_s": 0.1})
    policy: RolePolicy = DecodePolicy() if phase == "decoding" else PrefillPolicy()
    async with serving(policy, redis, slow) as (process, staying), open_channel(process.address, MIB) as channel:
        leaving = TestRouter(channel)
        await leaving.hello("leaving")
        await leaving.submit("r", token_ids=PROMPT, sampling=GREEDY, export_kv=phase != "decoding")
        if phase == "exported":
            await outputs_until_finished(leaving)
        elif phase == "decoding":
            await leaving.next_of("step")

        async def some_held() -> bool:
            return await used_blocks(staying) > 0

        await eventually(some_held)
        leaving.call.cancel()

        async def nothing_held() -> bool:
            return await used_blocks(staying) == 0

        await eventually(nothing_held)
        assert policy.open_leases == 0
