"""Sessions of routers with a worker, over real gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from decode_worker.policy import DecodePolicy
from prefill_worker.policy import PrefillPolicy
from services.config.settings import RedisSettings
from services.engine.kv.handle import LeaseOutcome
from services.engine.protocol import (
    FinishReason,
    LeaseClosed,
    RequestOutput,
    RequestRejected,
    RequestTimings,
    SamplingOptions,
)
from slos_serve.v1 import sampling_pb2, worker_pb2
from tests.support.eventually import eventually
from tests.unit.services.worker.worker_support import COMPATIBILITY, TestRouter, handle, running_worker

if TYPE_CHECKING:
    from collections.abc import Callable

NOT_ACCEPTING = worker_pb2.FAILURE_KIND_NOT_ACCEPTING
INVALID = worker_pb2.FAILURE_KIND_INVALID
ENGINE = worker_pb2.FAILURE_KIND_ENGINE


@pytest.fixture
def redis(redis_url: str, redis_prefix: str) -> RedisSettings:
    return RedisSettings(url=redis_url, prefix=redis_prefix, heartbeat_s=0.2)


async def test_every_session_gets_one_report_per_step_with_its_own_outputs(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        first, second, third = [await worker.router(name) for name in ("r1", "r2", "r3")]
        await first.submit("same-id")
        await first.submit("other", attempt=3)
        await worker.engine.until_asked(2)
        await second.submit("same-id")
        names = await worker.engine.until_asked(3)
        worker.engine.step(*(RequestOutput(name, (10 + n,)) for n, name in enumerate(names)))
        worker.engine.step(RequestOutput(names[2], (13,)))
        reports = {
            name: [await router.next_of("step") for _ in range(2)]
            for name, router in (("r1", first), ("r2", second), ("r3", third))
        }
        outputs = {
            name: [[(o.request_id, o.attempt, list(o.token_ids)) for o in report.outputs] for report in received]
            for name, received in reports.items()
        }
        assert outputs == {
            "r1": [[("same-id", 0, [10]), ("other", 3, [11])], []],
            "r2": [[("same-id", 0, [12])], [("same-id", 0, [13])]],
            "r3": [[], []],
        }
        for received in reports.values():
            assert [(r.step, r.duration_s, r.shape.decode_tokens) for r in received] == [(1, 0.01, 3), (2, 0.01, 1)]
            assert received[0].load.running_requests == 3


async def test_the_first_event_describes_the_worker_and_describe_says_the_same(redis: RedisSettings) -> None:
    async with running_worker(DecodePolicy(), redis) as worker:
        router = TestRouter(worker.channel())
        description = await router.hello("r1")
        assert (description.worker_id, description.model, description.kv_lease_s) == ("worker-0", "model", 30.0)
        assert (await router.stub.Describe(worker_pb2.DescribeRequest())).description == description


async def test_an_idle_worker_tells_its_load(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        for _ in range(2):
            assert (await router.event()).load.kv_blocks_total == 64


async def test_abort_is_confirmed_when_the_engine_has_let_go(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        worker.engine.answers_aborts = False
        await router.submit("a", attempt=1)
        (name,) = await worker.engine.until_asked(1)
        for attempt in (0, 1, 1):
            await router.abort("a", attempt)
        await router.abort("unknown")
        await eventually(lambda: worker.engine.aborted)
        # What the engine computes in the meantime is not delivered.
        worker.engine.step(RequestOutput(name, (5,)))
        assert not (await router.next_of("step")).outputs
        worker.engine.step(RequestOutput(name, (), finish_reason=FinishReason.ABORT), tokens=0)
        aborted = await router.next_of("aborted")
        assert (aborted.request_id, aborted.attempt) == ("a", 1)
        assert worker.engine.aborted == [name]


async def test_an_export_that_finishes_under_its_abort_is_released(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        worker.engine.answers_aborts = False
        await router.submit("a", export_kv=True)
        (name,) = await worker.engine.until_asked(1)
        await router.abort("a")
        await eventually(lambda: worker.engine.aborted)
        worker.engine.step(RequestOutput(name, (5,), finish_reason=FinishReason.LENGTH, kv=handle("late")))
        assert not (await router.next_of("step")).outputs
        assert (await router.next_of("aborted")).request_id == "a"
        await eventually(lambda: worker.engine.released == ["late"])


async def test_a_lost_router_has_its_requests_aborted_and_its_leases_released(redis: RedisSettings) -> None:
    policy = PrefillPolicy()
    async with running_worker(policy, redis) as worker:
        lost, staying = await worker.router("lost"), await worker.router("staying")
        await lost.submit("exported", export_kv=True)
        (exported,) = await worker.engine.until_asked(1)
        worker.engine.step(RequestOutput(exported, (1,), finish_reason=FinishReason.LENGTH, kv=handle("of lost")))
        await staying.submit("exported", export_kv=True)
        (exported,) = await worker.engine.until_asked(1)
        worker.engine.step(RequestOutput(exported, (1,), finish_reason=FinishReason.LENGTH, kv=handle("of staying")))
        await lost.submit("running")
        (running,) = await worker.engine.until_asked(1)
        await staying.submit("running")
        await worker.engine.until_asked(2)
        await eventually(lambda: policy.open_leases == 2)
        lost.call.cancel()
        await eventually(lambda: worker.engine.released == ["of lost"])
        assert worker.engine.aborted == [running]
        assert len(worker.engine.requests) == 1
        await eventually(lambda: policy.open_leases == 1)
        await staying.release_kv("of lost")
        await staying.release_kv("of staying")
        for _ in range(2):
            await staying.next_of("step")
        closed = await staying.next_of("lease_closed")
        assert (closed.lease_id, closed.outcome) == ("of staying", worker_pb2.LEASE_OUTCOME_RELEASED)
        assert worker.engine.released == ["of lost", "of staying"]


@pytest.mark.parametrize(
    ("outcome", "value"),
    [
        (LeaseOutcome.PULLED, worker_pb2.LEASE_OUTCOME_PULLED),
        (LeaseOutcome.EXPIRED, worker_pb2.LEASE_OUTCOME_EXPIRED),
    ],
)
async def test_the_end_of_a_lease_is_told_to_its_router_only(
    redis: RedisSettings, outcome: LeaseOutcome, value: int
) -> None:
    policy = PrefillPolicy()
    async with running_worker(policy, redis) as worker:
        holder, other = await worker.router("holder"), await worker.router("other")
        await holder.submit("a", export_kv=True)
        (name,) = await worker.engine.until_asked(1)
        worker.engine.step(RequestOutput(name, (1,), finish_reason=FinishReason.LENGTH, kv=handle("x")))
        kv = (await holder.next_of("step")).outputs[0].kv
        assert kv.lease_id == "x"
        assert 29.0 < kv.lease_remaining_s < 30.0
        assert policy.leases.kv_bytes_held == 320
        worker.engine.say(LeaseClosed("x", outcome))
        worker.engine.say(LeaseClosed("never opened", outcome))
        closed = await holder.next_of("lease_closed")
        assert (closed.lease_id, closed.outcome) == ("x", value)
        assert (policy.open_leases, policy.leases.kv_bytes_held, policy.leases.closed[outcome]) == (0, 0, 1)
        await other.next_of("step")
        await other.next_of("load")


async def test_a_router_that_opens_another_session_ends_the_older_one(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        older = await worker.router("r1")
        await older.submit("a")
        (name,) = await worker.engine.until_asked(1)
        newer = await worker.router("r1")
        assert (await older.ending())[0] == "ABORTED"
        await eventually(lambda: worker.engine.aborted == [name])
        # The same attempt of the same request is another one in the engine.
        await newer.submit("a")
        (again,) = await worker.engine.until_asked(1)
        assert again != name
        worker.engine.step(RequestOutput(again, (7,)))
        assert list((await newer.next_of("step")).outputs[0].token_ids) == [7]


async def test_a_router_that_does_not_read_is_cut_off(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis, max_unread_events=50) as worker:
        slow, quick = await worker.router("slow"), await worker.router("quick")
        await slow.submit("a")
        (name,) = await worker.engine.until_asked(1)
        # Large enough to fill what gRPC buffers on the way.
        tokens = tuple(range(100)) * 500
        for _ in range(400):
            worker.engine.step(RequestOutput(name, tokens))
            await quick.next_of("step")
            if worker.engine.aborted:
                break
        assert worker.engine.aborted == [name]
        code, details = await slow.ending()
        assert (code, details) == ("RESOURCE_EXHAUSTED", "session: the router left 50 events unread")
        worker.engine.step()
        await quick.submit("b")
        await worker.engine.until_asked(1)


async def test_what_the_engine_rejects_fails_alone(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        for invalid, kind in ((True, INVALID), (False, ENGINE)):
            await router.submit("a")
            (name,) = await worker.engine.until_asked(1)
            worker.engine.requests.clear()
            worker.engine.say(RequestRejected(name, invalid, "why"))
            failed = await router.next_of("request_failed")
            assert (failed.request_id, failed.attempt, failed.kind, failed.detail) == ("a", 0, kind, "why")
        worker.engine.submit_error = RuntimeError("a fault of the adapter")
        await router.submit("b")
        failed = await router.next_of("request_failed")
        assert (failed.request_id, failed.kind) == ("b", ENGINE)
        assert "a fault of the adapter" in failed.detail
        worker.engine.submit_error = None
        await router.submit("c")
        await worker.engine.until_asked(1)


async def test_requests_that_make_no_sense_fail_alone(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        for fields, reason in (
            ({"token_ids": ()}, "token_ids: must not be empty"),
            ({"token_ids": (1, 100)}, "token_ids: 100 is not in the vocabulary of 100"),
            ({"token_ids": (-1,)}, "token_ids: -1 is not in the vocabulary of 100"),
            ({"token_ids": (1,) * 1000}, "token_ids: the prompt has 1000 tokens"),
            ({"sampling": SamplingOptions(max_tokens=-5)}, "sampling.max_tokens: must be positive"),
            ({"deadline_in_s": float("nan")}, "deadline_in_s: must be finite"),
            ({"kv_source": handle()}, "a prefill worker pulls no KV cache"),
        ):
            await router.submit("a", **fields)
            failed = await router.next_of("request_failed")
            assert failed.kind == INVALID
            assert failed.detail.startswith(reason)
        assert not worker.engine.requests


async def test_a_full_worker_sends_requests_elsewhere(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        for number in range(65):
            await router.submit(f"a{number}")
        failed = await router.next_of("request_failed")
        assert (failed.request_id, failed.kind) == ("a64", NOT_ACCEPTING)
        assert len(worker.engine.requests) == 64


def _submit_twice(router: TestRouter) -> list[worker_pb2.SessionRequest]:
    sampling = sampling_pb2.SamplingParams(max_tokens=5)
    submit = worker_pb2.Submit(request_id="a", token_ids=[1], sampling=sampling)
    return [worker_pb2.SessionRequest(submit=submit)] * 2


@pytest.mark.parametrize(
    ("commands", "code", "details"),
    [
        (
            lambda _: [worker_pb2.SessionRequest(hello=worker_pb2.Hello(router_id="r1"))],
            "INVALID_ARGUMENT",
            "hello: a session has one hello",
        ),
        (
            lambda _: [worker_pb2.SessionRequest()],
            "INVALID_ARGUMENT",
            "command: no command that this worker knows",
        ),
        (
            lambda _: [worker_pb2.SessionRequest(submit=worker_pb2.Submit())],
            "INVALID_ARGUMENT",
            "submit.request_id: must not be empty",
        ),
        (_submit_twice, "ALREADY_EXISTS", "submit.request_id: request a, attempt 0, is here already"),
    ],
)
async def test_a_router_that_breaks_the_protocol_loses_its_session(
    redis: RedisSettings,
    commands: Callable[[TestRouter], list[worker_pb2.SessionRequest]],
    code: str,
    details: str,
) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        good, bad = await worker.router("good"), await worker.router("r1")
        for command in commands(bad):
            await bad.call.write(command)
        assert await bad.ending() == (code, details)
        await eventually(lambda: not worker.engine.requests)
        await good.submit("a")
        await worker.engine.until_asked(1)


@pytest.mark.parametrize(
    ("first", "details"),
    [
        (worker_pb2.SessionRequest(submit=worker_pb2.Submit(request_id="a")), "hello: the first command"),
        (worker_pb2.SessionRequest(hello=worker_pb2.Hello()), "hello.router_id: must not be empty"),
        (
            worker_pb2.SessionRequest(hello=worker_pb2.Hello(router_id="x" * 257)),
            "hello.router_id: at most 256 characters",
        ),
        (
            worker_pb2.SessionRequest(hello=worker_pb2.Hello(router_id="r", worker_id="another")),
            "hello.worker_id: this is worker ",
        ),
        (None, "hello: the first command"),
    ],
)
async def test_a_session_begins_with_hello(
    redis: RedisSettings, first: worker_pb2.SessionRequest | None, details: str
) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = TestRouter(worker.channel())
        if first is None:
            await router.call.done_writing()
        else:
            await router.call.write(first)
        code, said = await router.ending()
        assert code == "INVALID_ARGUMENT"
        assert said.startswith(details)


async def test_a_decode_worker_pulls_what_matches(redis: RedisSettings) -> None:
    policy = DecodePolicy()
    async with running_worker(policy, redis) as worker:
        router = await worker.router("r1")
        await router.submit("a", token_ids=(1, 2, 3, 4), generated_tokens=1, kv_source=handle())
        (name,) = await worker.engine.until_asked(1)
        source = worker.engine.requests[name].kv_source
        assert source is not None
        assert (source.lease_id, source.compatibility) == ("lease", COMPATIBILITY)
        timings = RequestTimings(0.1, 0.2, kv_recompute_reason="the owner is gone")
        worker.engine.step(RequestOutput(name, (5,), timings=timings))
        assert (await router.next_of("step")).outputs[0].timings.kv_recompute_reason == "the owner is gone"
        assert (policy.pulls, policy.recomputes) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lease_id": ""}, "the handle has no lease_id"),
        ({"transfer_params_json": ""}, "the handle has no transfer_params_json"),
        ({"tokens": 0}, "the handle covers 0 tokens"),
        ({"tokens": 5}, "the handle covers 5 tokens of a request of 4"),
        ({"lease_remaining_s": 0.0}, "the lease has 0.000 s left"),
        (
            {"compatibility": COMPATIBILITY.__class__("fingerprint", "float32", "auto", 64, 1, "HND", "test double")},
            "the engines do not match: dtype: bfloat16 != float32; block_tokens: 32 != 64",
        ),
    ],
)
async def test_a_decode_worker_computes_what_it_must_not_pull(
    redis: RedisSettings, changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = DecodePolicy()
    async with running_worker(policy, redis) as worker:
        router = await worker.router("r1")
        await router.submit("a", token_ids=(1, 2, 3, 4), generated_tokens=1, kv_source=handle(**changes))
        (name,) = await worker.engine.until_asked(1)
        assert worker.engine.requests[name].kv_source is None
        worker.engine.step(RequestOutput(name, (5,), timings=RequestTimings(0.1, 0.2)))
        worker.engine.step(RequestOutput(name, (6,), finish_reason=FinishReason.STOP))
        timings = (await router.next_of("step")).outputs[0].timings
        assert timings.kv_recompute_reason.startswith(reason)
        assert policy.recomputes == 1
        assert f"KV cache computed again: {reason}" in caplog.text


async def test_a_decode_worker_refuses_another_models_request_and_exports(redis: RedisSettings) -> None:
    async with running_worker(DecodePolicy(), redis) as worker:
        router = await worker.router("r1")
        foreign = COMPATIBILITY.__class__("another", "bfloat16", "auto", 32, 1, "HND", "test double")
        await router.submit("a", token_ids=(1, 2, 3, 4), generated_tokens=1, kv_source=handle(compatibility=foreign))
        failed = await router.next_of("request_failed")
        assert failed.kind == NOT_ACCEPTING
        assert "begun by another model" in failed.detail
        await router.submit("b", export_kv=True)
        assert (await router.next_of("request_failed")).kind == INVALID
        await router.submit("c")
        await worker.engine.until_asked(1)


async def test_a_half_closed_session_is_a_lost_router(redis: RedisSettings) -> None:
    async with running_worker(PrefillPolicy(), redis) as worker:
        router = await worker.router("r1")
        await router.submit("a")
        await worker.engine.until_asked(1)
        await router.call.done_writing()
        assert await router.ending() == ("OK", "")
        await eventually(lambda: worker.engine.aborted)
