"""Hand-over of KV caches over real sockets, and everything that can go wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from services.engine.emulated.engine import EmulatedEngine
from services.engine.emulated.link import Link
from services.engine.kv.compatibility import Compatibility
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.protocol import EngineRequest, RequestTimings, SamplingOptions
from tests.support.virtual_time import elapsed_s, run_virtual
from tests.unit.services.engine.emulated.emulated_support import (
    Recorder,
    prompt,
    running_engine,
    small_config,
    undisturbed,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FAST = small_config(time_scale=0.02, block_tokens=16)
SLOW_LINK = FAST.model_copy(update={"link_latency_s": 15.0})
SAMPLING = SamplingOptions(max_tokens=6, ignore_eos=True)
PROMPT = prompt(50)
WHOLE = undisturbed(FAST, PROMPT, SAMPLING)[0]


@contextlib.asynccontextmanager
async def exporting(config: Any = FAST) -> AsyncIterator[tuple[EmulatedEngine, Recorder, KvHandle]]:
    """An engine that has finished a prefill of `PROMPT` under a lease."""
    async with running_engine(config, "p") as (engine, recorder):
        await engine.submit(EngineRequest("p", PROMPT, 0, SAMPLING, export_kv=True))
        await recorder.finished("p")
        yield engine, recorder, recorder.handle("p")


async def pull(engine: EmulatedEngine, recorder: Recorder, handle: KvHandle, name: str = "d") -> RequestTimings:
    """Continue after the first token; whatever happens to the pull, the text is the same and nothing is left."""
    await engine.submit(EngineRequest(name, (*PROMPT, WHOLE[0]), 1, SAMPLING, kv_source=handle))
    await asyncio.wait_for(recorder.finished(name), 10)
    assert recorder.tokens(name) == WHOLE[1:]
    assert engine.load().kv_blocks_used == 0
    timings = recorder.outputs[name][0].timings
    assert timings is not None
    return timings


async def pull_on_another(handle: KvHandle, config: Any = FAST, model_fingerprint: str = "f") -> RequestTimings:
    async with running_engine(config, "d", model_fingerprint) as (engine, recorder):
        return await pull(engine, recorder, handle)


@pytest.mark.asyncio
async def test_pulled_kv_needs_one_token_and_closes_the_lease() -> None:
    async with exporting() as (exporter, exported, handle), running_engine(FAST, "d") as (engine, recorder):
        timings = await pull(engine, recorder, handle)
        assert timings.kv_recompute_reason == ""
        assert timings.kv_pull is not None
        assert timings.kv_pull.kv_bytes == 64 * 1000
        assert timings.wait_s >= timings.kv_pull.transfer_s >= 0.02 * (0.01 + 0.064) - 1e-4
        assert recorder.steps[0].shape.tokens == 1
        assert await exported.lease_closed(handle.lease_id) is LeaseOutcome.PULLED
        assert exporter.load().kv_blocks_used == 0


@pytest.mark.asyncio
async def test_engine_can_pull_from_itself() -> None:
    async with exporting() as (engine, recorder, handle):
        assert (await pull(engine, recorder, handle)).kv_pull is not None


@pytest.mark.asyncio
async def test_later_part_of_a_longer_context_is_computed() -> None:
    async with exporting() as (_, _, handle), running_engine(FAST, "d") as (engine, recorder):
        await engine.submit(EngineRequest("d", (*PROMPT, *WHOLE[:4]), 4, SAMPLING, kv_source=handle))
        await recorder.finished("d")
        assert recorder.tokens("d") == WHOLE[4:]
        assert recorder.steps[0].shape.prefill_tokens == 4


@pytest.mark.asyncio
async def test_handle_that_covers_everything_leaves_one_token_to_compute() -> None:
    async with exporting() as (_, _, handle), running_engine(FAST, "d") as (engine, recorder):
        await engine.submit(EngineRequest("d", PROMPT, 0, SAMPLING, kv_source=handle))
        await recorder.finished("d")
        assert recorder.tokens("d") == WHOLE
        assert recorder.steps[0].shape.prefill_tokens == 1
        assert len(recorder.steps) == 6


@pytest.mark.asyncio
async def test_second_pull_is_refused() -> None:
    async with exporting() as (_, exported, handle):
        await pull_on_another(handle)
        await exported.lease_closed(handle.lease_id)
        assert (await pull_on_another(handle)).kv_recompute_reason == "the lease was pulled"


@pytest.mark.asyncio
async def test_only_one_of_two_pulls_at_once_gets_the_kv() -> None:
    async with exporting(SLOW_LINK) as (_, _, handle), running_engine(FAST, "d") as (engine, recorder):
        first = asyncio.create_task(pull_on_another(handle))
        await asyncio.sleep(0.1)
        assert "another engine" in (await pull(engine, recorder, handle)).kv_recompute_reason
        assert (await first).kv_pull is not None


@pytest.mark.asyncio
async def test_released_and_expired_leases_are_refused() -> None:
    async with exporting() as (exporter, _, handle):
        await exporter.release_kv(handle.lease_id)
        assert (await pull_on_another(handle)).kv_recompute_reason == "the lease was released"
    async with exporting(FAST.model_copy(update={"kv_lease_s": 0.05})) as (_, exported, handle):
        assert await exported.lease_closed(handle.lease_id) is LeaseOutcome.EXPIRED
        late = replace(handle, lease_remaining_s=5.0)
        assert (await pull_on_another(late)).kv_recompute_reason == "the lease has expired"


@pytest.mark.asyncio
async def test_lease_that_ends_during_the_pull_is_not_used() -> None:
    async with exporting(SLOW_LINK) as (exporter, exported, handle):
        puller = asyncio.create_task(pull_on_another(handle))
        await asyncio.sleep(0.1)
        await exporter.release_kv(handle.lease_id)
        assert (await puller).kv_recompute_reason == "the lease was released"
        assert exported.closed == {handle.lease_id: LeaseOutcome.RELEASED}


@pytest.mark.asyncio
async def test_handle_of_an_engine_that_was_started_again_is_refused() -> None:
    async with exporting() as (exporter, _, handle):
        stale = replace(handle, engine_epoch="earlier")
        assert "engine that is gone" in (await pull_on_another(stale)).kv_recompute_reason
        assert exporter.load().kv_blocks_leased == 4


@pytest.mark.asyncio
async def test_pull_that_cannot_end_in_time_is_not_begun() -> None:
    async with exporting() as (_, exported, handle):
        timings = await pull_on_another(replace(handle, lease_remaining_s=0.5))
        assert "the lease has 0.500 s left" in timings.kv_recompute_reason
        assert exported.closed == {}


@pytest.mark.asyncio
async def test_pull_that_takes_too_long_is_given_up_and_the_lease_stays() -> None:
    async with exporting(SLOW_LINK) as (exporter, _, handle):
        timings = await pull_on_another(replace(handle, lease_remaining_s=0.7))
        assert "too close to the end of its lease" in timings.kv_recompute_reason
        assert exporter.load().kv_blocks_leased == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block_tokens": 32}, "block_tokens: 16 != 32"),
        ({"dtype": "float32"}, "dtype: emulated != float32"),
        ({"model_fingerprint": "g"}, "model_fingerprint: f != g"),
        ({"kv_layout": "1 bytes a token"}, "kv_layout"),
    ],
)
@pytest.mark.asyncio
async def test_engines_that_do_not_match_exchange_nothing(change: dict[str, Any], reason: str) -> None:
    async with exporting() as (_, _, handle):
        other: Compatibility = replace(handle.compatibility, **change)
        assert reason in (await pull_on_another(replace(handle, compatibility=other))).kv_recompute_reason


@pytest.mark.asyncio
async def test_kv_of_another_prompt_is_not_used() -> None:
    async with exporting() as (exporter, exported, handle):
        await exporter.submit(EngineRequest("q", prompt(50, salt=9), 0, SAMPLING, export_kv=True))
        await exported.finished("q")
        other = replace(handle, lease_id=exported.handle("q").lease_id, secret=exported.handle("q").secret)
        assert "another prompt" in (await pull_on_another(other)).kv_recompute_reason


@pytest.mark.parametrize(
    "params",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"host": "127.0.0.1"}',
        '{"host": "127.0.0.1", "port": "80"}',
        '{"host": "127.0.0.1", "port": 0}',
        '{"host": "127.0.0.1", "port": 65536}',
        '{"host": "127.0.0.1", "port": ' + "9" * 5000 + "}",
        '{"host": "127.0.0.1", "port": true}',
        '{"host": 5, "port": 80}',
        '{"host": "", "port": 80}',
        '{"host": "a\\u0000b", "port": 80}',
        '{"host": "' + "x" * 200 + '", "port": 80}',
        '{"host": "\\ud800", "port": 80}',
        '{"host": "127.0.0.1", "port": 80, "extra": 1}',
        '{"host": "127.0.0.1", "port": 1}',
    ],
)
@pytest.mark.asyncio
async def test_hostile_parameters_end_in_recomputation(params: str) -> None:
    async with exporting() as (_, _, handle):
        timings = await pull_on_another(replace(handle, transfer_params_json=params))
        assert timings.kv_pull is None
        assert timings.kv_recompute_reason


@pytest.mark.parametrize(
    "change",
    [
        {"lease_remaining_s": float("nan")},
        {"lease_remaining_s": float("inf")},
        {"lease_remaining_s": -1.0},
        {"tokens": 0},
        {"tokens": 10_000},
        {"tokens": 49},
        {"kv_bytes": -1},
        {"kv_bytes": 63_000},
        {"lease_id": "x" * 100_000},
        {"lease_id": "\n"},
    ],
)
@pytest.mark.asyncio
async def test_handles_that_make_no_sense_end_in_recomputation(change: dict[str, Any]) -> None:
    async with exporting() as (_, _, handle):
        timings = await pull_on_another(replace(handle, **change))
        assert timings.kv_pull is None
        assert timings.kv_recompute_reason


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n",
        b"hello\n",
        b"x" * 100_000,
        b'{"kind": "arrived"}\n',
        b'{"kind": "granted", "tokens": 1000000, "kv_bytes": 0, "context_digest": ""}\n',
        b"[" * 4000 + b"\n",
    ],
)
@pytest.mark.asyncio
async def test_hostile_exporter_ends_in_recomputation(answer: bytes) -> None:
    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.readline()
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answering, "127.0.0.1", 0)
    params = json.dumps({"host": "127.0.0.1", "port": server.sockets[0].getsockname()[1]})
    async with exporting() as (_, _, handle):
        timings = await pull_on_another(replace(handle, transfer_params_json=params))
        assert timings.kv_pull is None
        assert timings.kv_recompute_reason
    server.close()


@pytest.mark.asyncio
async def test_hostile_pullers_do_not_cost_the_lease() -> None:
    async with exporting() as (exporter, exported, handle):
        where = json.loads(handle.transfer_params_json)
        claim = {"lease_id": handle.lease_id, "secret": handle.secret, "engine_epoch": handle.engine_epoch}
        ask = json.dumps(claim).encode() + b"\n"
        for lines in (b"", b"\n", b"x" * 100_000, ask, ask + b'{"kind": "confirmed"}\n', ask + b"\xff\n", ask[:-3]):
            _, writer = await asyncio.open_connection(where["host"], where["port"])
            writer.write(lines)
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()
        await asyncio.sleep(0.05)
        assert exporter.load().kv_blocks_leased == 4
        assert (await pull_on_another(handle)).kv_pull is not None
        assert await exported.lease_closed(handle.lease_id) is LeaseOutcome.PULLED


@pytest.mark.asyncio
async def test_abort_during_the_pull_frees_the_puller_and_leaves_the_lease_to_others() -> None:
    async with exporting(SLOW_LINK) as (exporter, _, handle), running_engine(FAST, "d") as (engine, recorder):
        await engine.submit(EngineRequest("d", (*PROMPT, WHOLE[0]), 1, SAMPLING, kv_source=handle))
        await asyncio.sleep(0.05)
        assert engine.load().kv_blocks_used == 4
        await engine.abort("d")
        await recorder.finished("d")
        assert engine.load().kv_blocks_used == engine.load().waiting_requests == 0
        await asyncio.sleep(0.05)
        assert exporter.load().kv_blocks_leased == 4
        assert (await pull(engine, recorder, handle, "again")).kv_pull is not None


EXPORTER_PROCESS = """
import asyncio, dataclasses, json, sys
from tests.unit.services.engine.emulated.emulated_support import (running_engine)
from tests.unit.services.engine.emulated.test_hand_over import SLOW_LINK, exporting

async def main():
    async with exporting(SLOW_LINK) as (_, _, handle):
        print(json.dumps(dataclasses.asdict(handle)), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("killed_first", [True, False])
@pytest.mark.asyncio
async def test_killed_exporter_ends_in_recomputation(killed_first: bool) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", EXPORTER_PROCESS, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        fields = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        handle = KvHandle(**fields | {"compatibility": Compatibility(**fields["compatibility"])})
        if killed_first:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        puller = asyncio.create_task(pull_on_another(handle))
        if not killed_first:
            await asyncio.sleep(0.1)
            process.send_signal(signal.SIGKILL)
        reason = (await puller).kv_recompute_reason
        assert re.match("the exporter closed the connection|the exporter cannot be reached", reason)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def test_transfers_share_the_link() -> None:
    async def carried(link: Link, size_bytes: int, after_s: float) -> float:
        await asyncio.sleep(after_s)
        await link.carry(size_bytes)
        return elapsed_s()

    async def story() -> None:
        link = Link(latency_s=0.5, bytes_per_s=100.0)
        ends = await asyncio.gather(carried(link, 100, 0.0), carried(link, 100, 0.0), carried(link, 100, 10.0))
        assert ends == pytest.approx([2.5, 2.5, 11.5])
        start_s = elapsed_s()
        small_s, large_s = await asyncio.gather(carried(link, 100, 0.0), carried(link, 300, 0.5))
        assert (small_s - start_s, large_s - start_s) == pytest.approx((2.0, 4.5))

    run_virtual(story())


def test_transfer_that_is_given_up_leaves_its_share_to_others() -> None:
    async def story() -> None:
        link = Link(latency_s=0.0, bytes_per_s=100.0)
        kept = asyncio.create_task(link.carry(100))
        given_up = asyncio.create_task(link.carry(1000))
        await asyncio.sleep(1.0)
        given_up.cancel()
        await kept
        assert elapsed_s() == pytest.approx(1.5)

    run_virtual(story())
