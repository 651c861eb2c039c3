"""A campaign: inputs one after the other, several at the same time, until enough have been sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from services.engine.kv.address import ClaimAddress
from slos_serve.v1 import inference_pb2, worker_pb2
from tests.fuzz import doors
from tests.fuzz.http_targets import http_targets
from tests.fuzz.peer_targets import handle, peer_targets
from tests.fuzz.reader_targets import reader_targets
from tests.fuzz.record import Record
from tests.fuzz.rpc_targets import rpc_targets, serves_an_innocent
from tests.fuzz.stage import INFERENCE, WORKER, Stage, desk_address
from tests.fuzz.state_targets import check_redis, state_targets
from tests.fuzz.targets import Frames, Target, choose
from tests.fuzz.watch import FaultError, Watch, resident_bytes

LANES = 48
"""Inputs under way at the same time: some wait for an engine's step, or for a router that comes back."""
CHECK_EVERY = 500
"""Inputs between two checks that everything still runs and an innocent request is served."""
MEASURE_EVERY = 5_000
"""Inputs between two readings of the memory."""
WRITE_EVERY_S = 2.0
READY_S = 120.0


@dataclass(slots=True)
class Campaign:
    """The inputs of one seed, sent to one stage."""

    stage: Stage
    targets: Sequence[Target]
    record: Record
    watch: Watch
    only: int | None = None
    """Number of the only input to send."""
    report: Callable[[str], None] = print

    async def run(self, messages: int) -> None:
        """Send inputs until `messages` have been sent, earlier parts of the campaign included."""
        began_s, before_s = time.monotonic(), self.record.seconds
        if self.only is not None:
            await self._send(self.only)
        else:
            writing = asyncio.create_task(self._write(began_s, before_s))
            other = asyncio.create_task(self._occupy())
            try:
                async with asyncio.TaskGroup() as lanes:
                    for _ in range(LANES):
                        lanes.create_task(self._lane(messages))
            finally:
                for task in (writing, other):
                    task.cancel()
                await asyncio.gather(writing, other, return_exceptions=True)
        await self._check(self.record.begun)
        self.record.seconds = before_s + time.monotonic() - began_s
        self.record.write()

    async def _lane(self, messages: int) -> None:
        while self.record.begun < messages:
            number = self.record.next()
            if number % MEASURE_EVERY == 0:
                self.record.memory.append((number, resident_bytes() >> 20))
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                await self._check(number)
            await self._send(number)

    async def _send(self, number: int) -> None:
        rng = Random(f"{self.record.seed} {number}")
        target = choose(self.targets, rng)
        frames: Frames = ()
        try:
            began_s = time.perf_counter()
            frames = target.make(rng)
            self.watch.own_s += time.perf_counter() - began_s
            outcome = await target.send(frames, rng)
        except FaultError as fault:
            outcome = "FAULT"
            self._found(number, target.name, str(fault), frames)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is a finding, and the campaign goes on
            outcome = "FAULT"
            self._found(number, target.name, repr(error), frames)
        self.record.ended(number, target.name, outcome)
        for seen in self.watch.taken():
            # Others may have caused it: those that were under way are named.
            self._found(number, target.name, f"{seen}\nunder way: {sorted(self.record.running)}", frames)

    def _found(self, number: int, target: str, what: str, frames: Frames) -> None:
        self.record.finding(number, target, what, frames)
        if self.record.found <= 50:
            self.report(f"input {number}, {target}: {what}")

    async def _check(self, number: int) -> None:
        try:
            self.stage.check()
            await check_redis(self.stage.state)
            await serves_an_innocent(self.stage.router)
        except FaultError as fault:
            self._found(number, "check", str(fault), ())

    async def _occupy(self) -> None:
        """Keep requests under way in the staged cluster, so that what its workers report is about something."""
        request = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[20, 21, 22, 23]))
        request.sampling.max_tokens = 50
        request.contract.stages.add().decode.tpot_s = 0.5
        content = request.SerializeToString()
        while True:
            for _ in range(4):
                call = doors.call(
                    self.stage.staged_router, f"{INFERENCE}/Generate", content, enough=lambda _answer, count: count > 2
                )
                # A worker may refuse it, fail on it, or say nothing: the client leaves.
                await asyncio.wait([asyncio.ensure_future(_ignored(call))], timeout=0.2)
            await asyncio.sleep(0.05)

    async def _write(self, began_s: float, before_s: float) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            self.record.seconds = before_s + time.monotonic() - began_s
            self.record.write()


async def _ignored(call: object) -> None:
    try:
        async with asyncio.timeout(2.0):
            await call  # type: ignore[misc]
    except (FaultError, TimeoutError):
        return


async def targets_of(stage: Stage) -> list[Target]:
    """Return all targets, once the stage is ready for them."""
    await _ready(stage)
    described: list[worker_pb2.DescribeResponse] = []
    await doors.call(
        stage.workers["prefill-0"], f"{WORKER}/Describe", b"", enough=lambda *_: True, answers=described.append
    )
    params = await desk_address(stage)
    kv = handle(described[0].description.compatibility, params)
    return [
        *rpc_targets(stage.router, stage.workers, kv),
        *http_targets(stage.gateway),
        *state_targets(stage.state, stage.registry, stage.router),
        *peer_targets(stage.puppets, stage.workers["decode-0"], ClaimAddress.from_json(params), kv),
        *reader_targets(stage.model_dir, kv, described[0].description),
    ]


async def _ready(stage: Stage) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            try:
                await serves_an_innocent(stage.router)
            except FaultError:
                stage.check()
                await asyncio.sleep(0.2)
            else:
                return
