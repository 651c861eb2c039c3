"""The hub of a worker, without gRPC and on a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from decode_worker.policy import DecodePolicy
from prefill_worker.policy import PrefillPolicy
from services import wire
from services.engine.kv.handle import LeaseOutcome
from services.engine.protocol import (
    EngineDeadError,
    EngineRequest,
    FinishReason,
    LeaseClosed,
    RequestOutput,
    RequestRejected,
    SamplingOptions,
)
from services.rpc.errors import DuplicateRequestError, InvalidRequestError, SessionReplacedError
from services.telemetry.process import ProcessTelemetry
from services.telemetry.settings import TelemetrySettings
from services.worker.hub import MIN_REQUEST_LIMIT, REQUESTS_PER_RUNNING, WorkerHub
from slos_serve.v1 import worker_pb2
from tests.support.engine_facts import FACTS
from tests.support.eventually import eventually
from tests.unit.services.worker.worker_support import ScriptedEngine, handle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.engine.protocol import EngineFacts
    from services.worker.policy import RolePolicy
    from services.worker.sessions import RouterSession

START_S = 7_000.0
HEARTBEAT_S = 0.02


class Hub:
    """A hub whose clock the test moves, and what each of its sessions was sent."""

    def __init__(self, policy: RolePolicy, facts: EngineFacts, heartbeat_s: float, step_timeout_s: float) -> None:
        self.now_s = START_S
        self.engine = ScriptedEngine()
        self.policy = policy
        self.telemetry = ProcessTelemetry(TelemetrySettings(metrics=False), "test", "test")
        self.hub = WorkerHub(
            self.engine,
            facts,
            policy,
            "worker",
            self.telemetry,
            max_unread_events=1_000,
            heartbeat_s=heartbeat_s,
            step_timeout_s=step_timeout_s,
            clock=lambda: self.now_s,
        )
        self._readers: dict[str, AsyncIterator[worker_pb2.SessionResponse]] = {}

    def open(self, router_id: str) -> RouterSession:
        session = self.hub.open(router_id)
        assert self.kinds(session) == ["description"]
        return session

    def submit(self, session: RouterSession, request_id: str, attempt: int = 0, **fields: Any) -> None:
        request = EngineRequest(
            **{
                "request_id": request_id,
                "token_ids": (1, 2, 3),
                "generated_tokens": 0,
                "sampling": SamplingOptions(max_tokens=10),
                **fields,
            }
        )
        self.hub.submit(session, wire.submit_to_wire(request, attempt))

    def sent(self, session: RouterSession) -> list[worker_pb2.SessionResponse]:
        """What a session was sent since the last look."""
        waiting = [message for message, _ in session.outbox._waiting]
        session.outbox._waiting.clear()
        return waiting

    def kinds(self, session: RouterSession) -> list[str]:
        return [str(message.WhichOneof("event")) for message in self.sent(session)]


@contextlib.asynccontextmanager
async def running(
    policy: RolePolicy, facts: EngineFacts = FACTS, heartbeat_s: float = 3_600.0, step_timeout_s: float = 60.0
) -> AsyncIterator[tuple[Hub, asyncio.Task[None]]]:
    hub = Hub(policy, facts, heartbeat_s, step_timeout_s)
    task = asyncio.create_task(hub.hub.run())
    yield hub, task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    hub.telemetry.close()


async def engine_id(hub: Hub, session: RouterSession, request_id: str) -> str:
    """The engine's id of a request, as soon as the engine has it."""
    await eventually(lambda: any(f"/{request_id}/" in name for name in hub.engine.requests))
    return next(name for name in hub.engine.requests if name.startswith(f"{session.key}/{request_id}/"))


@pytest.mark.parametrize("running_at_once", [4, 20])
async def test_a_worker_takes_a_multiple_of_what_its_engine_runs_and_refuses_the_rest(running_at_once: int) -> None:
    async with running(DecodePolicy(), replace(FACTS, max_running_requests=running_at_once)) as (hub, _):
        limit = max(MIN_REQUEST_LIMIT, REQUESTS_PER_RUNNING * running_at_once)
        session = hub.open("router")
        for number in range(limit):
            hub.submit(session, f"r{number}")
        assert hub.sent(session) == []
        hub.submit(session, "one too many")
        (refused,) = hub.sent(session)
        assert refused.request_failed.request_id == "one too many"
        assert refused.request_failed.kind == worker_pb2.FAILURE_KIND_NOT_ACCEPTING
        assert f"it has {limit} requests" in refused.request_failed.detail
        assert hub.hub.requests == limit


async def test_a_draining_worker_tells_its_routers_and_refuses() -> None:
    async with running(DecodePolicy()) as (hub, _):
        session = hub.open("router")
        hub.hub.drain()
        hub.submit(session, "r")
        draining, refused = hub.sent(session)
        assert draining.HasField("draining")
        assert refused.request_failed.kind == worker_pb2.FAILURE_KIND_NOT_ACCEPTING
        assert hub.hub.description().draining


async def test_what_no_worker_could_take_is_invalid() -> None:
    async with running(DecodePolicy()) as (hub, _):
        session = hub.open("router")
        hub.submit(session, "r", token_ids=(1, FACTS.vocabulary_size))
        hub.submit(session, "s", token_ids=(1, 2), export_kv=True)
        assert [message.request_failed.kind for message in hub.sent(session)] == [worker_pb2.FAILURE_KIND_INVALID] * 2
        with pytest.raises(InvalidRequestError):
            hub.submit(session, "")
        hub.submit(session, "t", attempt=1)
        hub.submit(session, "t", attempt=2)
        with pytest.raises(DuplicateRequestError):
            hub.submit(session, "t", attempt=1)


async def test_a_router_that_comes_again_replaces_its_older_session_and_no_other() -> None:
    async with running(DecodePolicy()) as (hub, _):
        older, other = hub.open("router"), hub.open("another")
        hub.submit(older, "r")
        name = await engine_id(hub, older, "r")
        newer = hub.open("router")
        assert isinstance(older.outbox.error, SessionReplacedError)
        assert not other.outbox.closed
        await eventually(lambda: hub.engine.aborted == [name])
        hub.submit(newer, "r")
        assert await engine_id(hub, newer, "r") != name


async def test_the_end_of_a_session_frees_what_its_router_had_here() -> None:
    policy = PrefillPolicy()
    async with running(policy) as (hub, _):
        gone, stays = hub.open("gone"), hub.open("stays")
        hub.submit(gone, "held", export_kv=True)
        hub.engine.step(
            RequestOutput(
                await engine_id(hub, gone, "held"), (5,), finish_reason=FinishReason.LENGTH, kv=handle("lease")
            )
        )
        await eventually(lambda: policy.open_leases)
        hub.submit(gone, "running", deadline_in_s=1.0)
        await engine_id(hub, gone, "running")
        hub.submit(stays, "other")
        hub.engine.answers_aborts = hub.engine.answers_releases = False
        hub.hub.close(gone)
        hub.hub.close(gone)
        await eventually(lambda: hub.engine.released == ["lease"] and len(hub.engine.aborted) == 1)
        third = hub.open("third")
        hub.submit(gone, "late", token_ids=(1, 2), deadline_in_s=2.0)
        hub.submit(stays, "new", token_ids=(1, 2, 3, 4), deadline_in_s=3.0)
        await eventually(lambda: len(third.outbox))
        (told,) = hub.sent(third)
        assert [prompt.tokens for prompt in told.load.others.prompts] == [4, 3], "none is of the session that is over"


async def test_an_idle_worker_has_neither_requests_nor_leases() -> None:
    policy = PrefillPolicy()
    async with running(policy) as (hub, _):
        await asyncio.wait_for(hub.hub.wait_idle(), 1)
        session = hub.open("router")
        hub.submit(session, "r", export_kv=True)
        idle = asyncio.create_task(hub.hub.wait_idle())
        name = await engine_id(hub, session, "r")
        assert not idle.done()
        hub.engine.step(RequestOutput(name, (5,), finish_reason=FinishReason.LENGTH, kv=handle("lease")))
        await eventually(lambda: policy.open_leases == 1)
        await asyncio.sleep(0)
        assert hub.hub.requests == 0
        assert not idle.done(), "a KV cache is still to be pulled"
        hub.engine.say(LeaseClosed("lease", LeaseOutcome.PULLED))
        await asyncio.wait_for(idle, 30)


async def test_a_lease_is_given_up_by_the_router_that_holds_it_alone() -> None:
    policy = PrefillPolicy()
    async with running(policy) as (hub, _):
        holder, other = hub.open("holder"), hub.open("other")
        hub.submit(holder, "r", export_kv=True)
        name = await engine_id(hub, holder, "r")
        hub.engine.answers_releases = False
        hub.engine.step(RequestOutput(name, (5,), finish_reason=FinishReason.LENGTH, kv=handle("lease")))
        await eventually(lambda: policy.open_leases == 1)
        assert policy.leased_blocks(frozenset({holder.key})) == 1
        release = worker_pb2.ReleaseKv(lease_id="lease")
        hub.hub.release_kv(other, release)
        hub.hub.release_kv(holder, worker_pb2.ReleaseKv(lease_id="unknown"))
        hub.hub.release_kv(holder, release)
        await eventually(lambda: hub.engine.released == ["lease"])
        assert policy.leased_blocks(frozenset({holder.key})) == 0, "nobody wants it any more"
        hub.sent(holder)
        hub.engine.say(LeaseClosed("lease", LeaseOutcome.RELEASED))
        await eventually(lambda: not policy.open_leases)
        (closed,) = hub.sent(holder)
        assert closed.lease_closed.outcome == worker_pb2.LEASE_OUTCOME_RELEASED
        assert "lease_closed" not in hub.kinds(other)


async def test_other_routers_hear_at_once_of_what_one_router_promised_and_once() -> None:
    async with running(PrefillPolicy()) as (hub, _):
        alone = hub.open("a")
        hub.submit(alone, "before", deadline_in_s=5.0)
        await asyncio.sleep(0.01)
        assert hub.kinds(alone) == []
        other = hub.open("b")
        hub.submit(alone, "r", deadline_in_s=2.0)
        hub.submit(alone, "s", token_ids=(1, 2), deadline_in_s=1.0)
        hub.submit(alone, "best effort", best_effort=True)
        await eventually(lambda: len(other.outbox))
        await asyncio.sleep(0.01)
        (told,) = hub.sent(other)
        prompts = told.load.others.prompts
        assert [(prompt.due_in_s, prompt.tokens) for prompt in prompts] == [(1.0, 2), (2.0, 3), (5.0, 3)]
        assert hub.kinds(alone) == [], "a router knows its own requests"
        hub.hub.expect(other, worker_pb2.Expect(request_id="later", promised_tokens=70, tpot_s=0.1))
        await eventually(lambda: len(alone.outbox))
        (told,) = hub.sent(alone)
        assert [(decodes.tokens, decodes.requests) for decodes in told.load.others.decodes] == [(70, 1)]


async def test_each_router_is_told_of_the_others_work_with_every_step_as_it_goes_on() -> None:
    async with running(PrefillPolicy()) as (hub, _):
        owner, other = hub.open("owner"), hub.open("other")
        hub.submit(owner, "r", token_ids=tuple(range(10)), deadline_in_s=3.0)
        name = await engine_id(hub, owner, "r")
        hub.sent(other)
        hub.now_s += 1.0
        hub.engine.step(RequestOutput(name, (), prefilled_tokens=6))
        await eventually(lambda: len(owner.outbox) and len(other.outbox))
        (mine,), (theirs,) = hub.sent(owner), hub.sent(other)
        assert mine.step.made_at_s == theirs.step.made_at_s == START_S + 1.0
        assert [prompt.tokens for prompt in theirs.step.load.others.prompts] == [4]
        assert [prompt.due_in_s for prompt in theirs.step.load.others.prompts] == [2.0]
        assert not mine.step.load.others.prompts
        assert (len(mine.step.outputs), len(theirs.step.outputs)) == (1, 0)
        hub.engine.step(RequestOutput(name, (7,), finish_reason=FinishReason.STOP))
        await eventually(lambda: len(other.outbox))
        (theirs,) = hub.sent(other)
        assert not theirs.step.load.others.prompts
        assert not theirs.step.load.others.decodes, "it has ended"


async def test_no_two_routers_are_told_the_same_of_the_others() -> None:
    async with running(PrefillPolicy()) as (hub, _):
        sessions = [hub.open(router_id) for router_id in ("a", "b", "c")]
        for tokens, session in enumerate(sessions, start=1):
            hub.submit(session, "r", token_ids=tuple(range(tokens)), deadline_in_s=float(tokens))
        name = await engine_id(hub, sessions[0], "r")
        for session in sessions:
            hub.sent(session)
        hub.engine.step(RequestOutput(name, (), prefilled_tokens=0))
        await eventually(lambda: all(len(session.outbox) for session in sessions))
        told = [hub.sent(session)[-1].step.load.others.prompts for session in sessions]
        assert [[prompt.tokens for prompt in prompts] for prompts in told] == [[2, 3], [3], [2]]


async def test_a_step_that_computed_nothing_is_told_as_a_load_to_those_it_does_not_concern() -> None:
    async with running(DecodePolicy()) as (hub, _):
        owner, other = hub.open("owner"), hub.open("other")
        hub.submit(owner, "r", best_effort=True)
        name = await engine_id(hub, owner, "r")
        hub.engine.step(RequestOutput(name, (), finish_reason=FinishReason.ERROR), tokens=0)
        await eventually(lambda: len(owner.outbox) and len(other.outbox))
        assert (hub.kinds(owner), hub.kinds(other)) == (["step"], ["load"])


@pytest.mark.parametrize(
    ("invalid", "kind"), [(True, worker_pb2.FAILURE_KIND_INVALID), (False, worker_pb2.FAILURE_KIND_ENGINE)]
)
async def test_a_request_that_the_engine_rejects(invalid: bool, kind: int) -> None:
    async with running(DecodePolicy()) as (hub, _):
        session = hub.open("router")
        hub.submit(session, "r", attempt=2)
        name = await engine_id(hub, session, "r")
        hub.engine.say(RequestRejected(name, invalid=invalid, detail="because"))
        await eventually(lambda: len(session.outbox))
        (failed,) = hub.sent(session)
        assert (failed.request_failed.request_id, failed.request_failed.attempt) == ("r", 2)
        assert (failed.request_failed.kind, failed.request_failed.detail) == (kind, "because")
        assert hub.hub.requests == 0


async def test_an_abort_that_meets_a_rejection_is_confirmed() -> None:
    async with running(DecodePolicy()) as (hub, _):
        session = hub.open("router")
        hub.engine.answers_aborts = False
        hub.submit(session, "r")
        name = await engine_id(hub, session, "r")
        abort = worker_pb2.Abort(request_id="r")
        hub.hub.abort(session, abort)
        hub.hub.abort(session, abort)
        hub.engine.say(RequestRejected(name, invalid=False, detail="because"))
        await eventually(lambda: len(session.outbox))
        assert hub.kinds(session) == ["aborted"]
        assert hub.engine.aborted == [name]


async def test_a_kv_cache_that_is_finished_under_its_abort_is_released() -> None:
    policy = PrefillPolicy()
    async with running(policy) as (hub, _):
        session = hub.open("router")
        hub.engine.answers_aborts = False
        hub.submit(session, "r", export_kv=True)
        name = await engine_id(hub, session, "r")
        hub.hub.abort(session, worker_pb2.Abort(request_id="r"))
        hub.engine.step(RequestOutput(name, (5,), finish_reason=FinishReason.LENGTH, kv=handle("late")))
        await eventually(lambda: hub.engine.released == ["late"])
        assert policy.open_leases == 0
        step, aborted = hub.sent(session)
        assert not step.step.outputs
        assert (aborted.aborted.request_id, aborted.aborted.attempt) == ("r", 0)


async def test_an_engine_that_raises_on_a_submission_costs_that_request_alone() -> None:
    async with running(DecodePolicy()) as (hub, task):
        session = hub.open("router")
        hub.engine.submit_error = ValueError("broken adapter")
        hub.submit(session, "r")
        await eventually(lambda: len(session.outbox))
        (failed,) = hub.sent(session)
        assert failed.request_failed.kind == worker_pb2.FAILURE_KIND_ENGINE
        assert "broken adapter" in failed.request_failed.detail
        await asyncio.wait_for(hub.hub.wait_idle(), 1)
        hub.engine.submit_error = None
        hub.submit(session, "s")
        await engine_id(hub, session, "s")
        hub.engine.submit_error = EngineDeadError("gone")
        hub.submit(session, "t")
        with pytest.raises(EngineDeadError, match="gone"):
            await task


async def test_only_who_heard_nothing_for_half_an_interval_is_told_the_load() -> None:
    async with running(DecodePolicy(), heartbeat_s=HEARTBEAT_S) as (hub, _):
        session = hub.open("router")
        await asyncio.sleep(3 * HEARTBEAT_S)
        assert hub.kinds(session) == [], "by the worker's clock no time has passed"
        hub.now_s += HEARTBEAT_S / 2
        await eventually(lambda: len(session.outbox))
        await asyncio.sleep(3 * HEARTBEAT_S)
        assert hub.kinds(session) == ["load"], "one that is not read is enough"
        hub.submit(session, "r")
        hub.now_s += HEARTBEAT_S / 4
        hub.engine.step(RequestOutput(await engine_id(hub, session, "r"), (5,)))
        await eventually(lambda: any(message.HasField("step") for message, _ in session.outbox._waiting))
        hub.sent(session)
        hub.now_s += HEARTBEAT_S / 4
        await asyncio.sleep(3 * HEARTBEAT_S)
        assert hub.kinds(session) == [], "a step report has the load in it"


async def test_an_engine_with_requests_and_without_a_sign_of_life_is_dead() -> None:
    async with running(DecodePolicy(), heartbeat_s=HEARTBEAT_S, step_timeout_s=5 * HEARTBEAT_S) as (hub, task):
        session = hub.open("router")

        async def checked() -> None:
            """One check of the engine, after a long time by the worker's clock, of which two intervals count."""
            session.reported_s = hub.now_s
            hub.now_s += 1_000.0
            await eventually(lambda: len(session.outbox) or task.done())
            hub.sent(session)

        for _ in range(5):
            await checked()
        hub.submit(session, "r")
        name = await engine_id(hub, session, "r")
        for _ in range(2):
            await checked()
        hub.engine.step(RequestOutput(name, (5,)))
        await eventually(lambda: len(session.outbox))
        hub.sent(session)
        for _ in range(3):
            await checked()
        assert not task.done(), "the first of these checks saw the step"
        await checked()
        with pytest.raises(EngineDeadError, match="1 requests, but no sign of life"):
            await task
