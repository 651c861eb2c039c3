"""Whatever somebody may have put into Redis."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from random import Random
from typing import Any, cast

from redis.asyncio import Redis

from services.state.connection import StateConnection, StateUnavailableError
from services.state.journal_entry import JournalEntry, RequestState
from services.state.registry import WorkerIdTakenError, WorkerRecord, WorkerRegistry, WorkerRole
from slos_serve.v1 import inference_pb2
from tests.fuzz import documents, doors, values
from tests.fuzz.doors import Door
from tests.fuzz.stage import INFERENCE, SERVED, STAGED
from tests.fuzz.targets import Frames, Target
from tests.fuzz.watch import FaultError
from tests.unit.router.router_support import FACTS

RECORD = WorkerRecord(
    "w", WorkerRole.DECODE, "127.0.0.1:1", "epoch", asdict(FACTS.compatibility), "m", emulated=True, metrics_address=""
)
ENTRY = JournalEntry("r", "router-of-another-time", RequestState.DECODING, 1, "prefill-0", "1", "decode-0", "1", 7)
LEFT_SHARE = 0.01
"""Share of records that the staged cluster's router finds too; the others are removed before it reads again."""
LEFT_S = 2
"""Seconds that these stay."""


@dataclass(slots=True)
class RegistryTarget:
    """A worker's record in the registry, read by routers and by a worker of the same id."""

    state: StateConnection
    registry: WorkerRegistry
    share: int
    name: str = "Redis: registry"
    number: int = 0

    def make(self, rng: Random) -> Frames:
        return (documents.mutated({**asdict(RECORD), "role": "decode"}, rng),)

    async def send(self, frames: Frames, rng: Random) -> str:
        self.number += 1
        worker_id = rng.choice((f"w{self.number}", f"w{self.number}", f"{self.number} \ufffd\n"))
        content = frames[0].replace(b'"worker_id": "w"', b'"worker_id": "%s"' % worker_id.encode())
        key, index = f"{STAGED}:worker:{worker_id}", f"{STAGED}:workers"
        left = rng.random() < LEFT_SHARE

        async def put(redis: Redis) -> None:
            await redis.set(key, content, ex=LEFT_S if left else 60)
            await cast("Any", redis.sadd(index, worker_id))

        await self.state.run(put)
        records = await self.registry.workers()
        found = [record for record in records if record.worker_id == worker_id]
        mine = WorkerRecord(worker_id, WorkerRole.DECODE, "127.0.0.1:2", "mine", {}, "m", emulated=True)
        try:
            await self.registry.put(mine)
            taken = "id taken over"
        except WorkerIdTakenError:
            taken = "id taken"
        if not left or taken == "id taken over":
            await self.state.run(lambda redis: redis.delete(key))
            await self.state.run(lambda redis: cast("Any", redis.srem(index, worker_id)))
        return f"{'read' if found else 'left out'}, {taken}"


@dataclass(slots=True)
class JournalTarget:
    """An entry of the journal, for a client that cancels the request or asks under its id."""

    state: StateConnection
    router: Door
    share: int
    name: str = "Redis: journal"
    number: int = 0

    def make(self, rng: Random) -> Frames:
        return (documents.mutated({**asdict(ENTRY), "state": "decoding", "reservation": "0123456789abcdef"}, rng),)

    async def send(self, frames: Frames, rng: Random) -> str:
        self.number += 1
        request_id = f"journal-{self.number}"
        key = f"{SERVED}:request:{request_id}"
        kind = rng.randrange(10)

        async def put(redis: Redis) -> None:
            match kind:
                case 0:
                    await cast("Any", redis.rpush(key, frames[0]))
                case 1:
                    await cast("Any", redis.hset(key, "field", frames[0].decode("latin-1")))
                case _:
                    await redis.set(key, frames[0].replace(b'"r"', b'"%s"' % request_id.encode()))
            await redis.expire(key, 60)

        await self.state.run(put)
        cancel = inference_pb2.CancelRequest(request_id=request_id).SerializeToString()
        cancelled = await doors.call(self.router, f"{INFERENCE}/Cancel", cancel, enough=lambda *_: True)
        if rng.random() < 0.3:
            wanted = inference_pb2.GenerateRequest(request_id=request_id, text="x")
            wanted.sampling.max_tokens = 1
            again = await doors.call(
                self.router, f"{INFERENCE}/Generate", wanted.SerializeToString(), enough=lambda *_: True
            )
            cancelled = f"{cancelled}; asked again: {again}"
        await self.state.run(lambda redis: redis.delete(key))
        return cancelled


@dataclass(slots=True)
class CancellationTarget:
    """A message on the channel on which a router hears of cancellations."""

    state: StateConnection
    share: int
    name: str = "Redis: cancellations"

    def make(self, rng: Random) -> Frames:
        text = values.text(rng).encode("utf-8", "replace")
        return (values.damaged(text, rng) if rng.random() < 0.5 else text,)

    async def send(self, frames: Frames, rng: Random) -> str:
        heard = await self.state.run(lambda redis: redis.publish(f"{SERVED}:cancel:router-{SERVED}", frames[0]))
        if heard != 1:
            raise FaultError(f"{heard} routers listen to cancellations")
        return "heard"


async def check_redis(state: StateConnection) -> None:
    """Check that the fuzzer's own Redis answers, so that nothing is blamed on a router that is Redis's.

    Raises:
        FaultError: it does not.
    """
    try:
        await state.ping()
    except StateUnavailableError as error:
        raise FaultError(str(error)) from error


def state_targets(state: StateConnection, registry: WorkerRegistry, router: Door) -> list[Target]:
    """Return the targets that are values in Redis."""
    return [RegistryTarget(state, registry, 40), JournalTarget(state, router, 40), CancellationTarget(state, 15)]
