"""What a worker shows of its engine's work, read from its page."""

from __future__ import annotations

import asyncio

import pytest

from decode_worker.policy import DecodePolicy
from prefill_worker.policy import PrefillPolicy
from services.config.settings import RedisSettings
from services.engine.kv.handle import KvPull
from services.engine.protocol import EngineLoad, FinishReason, RequestOutput, RequestTimings
from services.telemetry.catalogue import router, vllm, worker
from tests.support.eventually import eventually
from tests.support.scrape import Page, scrape
from tests.unit.services.worker.worker_support import RunningWorker, handle, running_worker


@pytest.fixture
def redis(redis_url: str, redis_prefix: str) -> RedisSettings:
    return RedisSettings(url=redis_url, prefix=redis_prefix, heartbeat_s=0.2)


async def page_of(running: RunningWorker) -> Page:
    return await asyncio.to_thread(scrape, running.process.metrics_address)


async def test_a_prefill_worker_shows_prompts_leases_and_what_is_stranded(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as running:
        first, second = await running.router("r1"), await running.router("r2")
        await first.submit("a", export_kv=True)
        await first.submit("b", export_kv=True)
        # Sessions are not ordered among each other, and leases below are told by the order of requests.
        await running.engine.until_asked(2)
        await second.submit("c", export_kv=True)
        names = await running.engine.until_asked(3)
        timings = RequestTimings(wait_s=0.5, run_s=0.25, cached_tokens=2)
        running.engine.step(
            *(
                RequestOutput(name, (9,), finish_reason=FinishReason.LENGTH, kv=handle(f"l{n}"), timings=timings)
                for n, name in enumerate(names)
            )
        )
        await first.next_of("step")
        running.engine.load = lambda: EngineLoad(0, 0, 64, 5, 3)  # type: ignore[method-assign]
        page = await page_of(running)
        assert page.value(worker.KV_BLOCKS, slos_state="leased") == 3
        assert page.value(worker.KV_BLOCKS, slos_state="stranded") == 0
        assert page.value(worker.WORKER_SESSIONS) == 2
        assert page.value(vllm.PROMPT_TOKENS) == 9
        assert page.value(vllm.PREFIX_QUERIES) == 9
        assert page.value(vllm.PREFIX_HITS) == 6
        assert page.value(vllm.GENERATION_TOKENS) == 3
        assert page.value(vllm.TTFT) == 3
        assert page.value(vllm.REQUEST_SUCCESS, finished_reason="length") == 3
        assert page.samples["vllm:request_queue_time_seconds_sum"][0][1] == 1.5
        assert page.samples["vllm:request_prefill_time_seconds_sum"][0][1] == 0.75
        assert page.value(vllm.KV_USAGE) == 5 / 64
        ((labels, value),) = page.samples["vllm:cache_config_info"]
        assert (labels["block_size"], labels["num_gpu_blocks"], value) == ("32", "64", 1)
        # A router that has gone away wants its KV caches no more; the engine of this test frees nothing by itself.
        running.engine.answers_releases = False
        second.call.cancel()
        await first.release_kv("l0")

        async def stranded() -> bool:
            return (await page_of(running)).value(worker.KV_BLOCKS, slos_state="stranded") == 2

        await eventually(stranded)


async def test_a_decode_worker_shows_pulls_recomputes_and_the_pace_of_tokens(redis: RedisSettings) -> None:
    async with running_worker(DecodePolicy(), redis) as running:
        one = await running.router("r1")
        await one.submit("pulled", kv_source=handle())
        await one.submit("again", kv_source=handle("gone", engine_epoch=""))
        names = await running.engine.until_asked(2)
        pull = RequestTimings(0.2, 0.1, kv_pull=KvPull(640, 0.05))
        running.engine.step(
            RequestOutput(names[0], (5,), timings=pull), RequestOutput(names[1], (5,), timings=RequestTimings(0.1, 0.3))
        )
        for _ in range(3):
            running.engine.step(*(RequestOutput(name, (6,)) for name in names))
        running.engine.step(*(RequestOutput(name, (7,), finish_reason=FinishReason.STOP) for name in names))
        for _ in range(5):
            await one.next_of("step")
        page = await page_of(running)
        assert page.value(worker.KV_PULL_BYTES) == 640
        assert page.value(worker.KV_PULL_DURATION) == 1
        assert page.value(router.KV_RECOMPUTES) == 1
        assert page.value(vllm.GENERATION_TOKENS) == 10
        assert page.value(vllm.ITL) == 8
        assert page.value(vllm.TPOT) == 2
        assert page.value(vllm.TTFT) == 1, "of the prompt computed here; a pulled one has its first token already"
        assert page.value(vllm.PROMPT_TOKENS) == 3
        assert page.value(vllm.REQUEST_SUCCESS, finished_reason="stop") == 2
        assert page.value(worker.STEP_DURATION, slos_regime="decode") == 5
