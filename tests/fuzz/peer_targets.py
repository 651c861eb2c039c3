"""What workers say to routers, and what engines say to each other at lease desks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from google.protobuf.message import DecodeError

from services.engine.kv.address import ClaimAddress
from services.engine.kv.backend import ClaimRefusedError
from services.engine.vllm.frontend.nixl_backend import NixlBackend
from slos_serve.v1 import sampling_pb2, worker_pb2
from tests.fuzz import documents, doors, messages
from tests.fuzz.doors import PATIENCE_S, Door
from tests.fuzz.puppets import Puppet
from tests.fuzz.stage import WORKER
from tests.fuzz.targets import Frames, Target
from tests.fuzz.watch import FaultError

DESCRIBED_SHARE = 0.05
"""Share of inputs that begin with what a worker says of itself, which the router reads once a session."""
MARK = "known-request"
"""Id that stands, in an input, for a request that the router has given the worker."""


CLAIM = {"lease_id": "lease", "secret": "0" * 32, "engine_epoch": "epoch"}


def reports(kv: worker_pb2.KvHandle) -> list[worker_pb2.SessionResponse]:
    """Return what a worker says that does its work."""
    load = worker_pb2.WorkerLoad(running_requests=1, kv_blocks_total=1000, kv_blocks_used=10)
    load.others.decodes.add(tpot_s=0.1, requests=1, tokens=100)
    load.others.prompts.add(due_in_s=0.5, tokens=10)
    step = worker_pb2.StepReport(step=1, duration_s=0.02, load=load, made_at_s=5.0)
    step.shape.CopyFrom(worker_pb2.StepShape(decode_requests=2, decode_tokens=2, decode_context_tokens=200))
    step.scheduling.CopyFrom(worker_pb2.Scheduling(predicted_s=0.02, bound_s=0.03, compose_s=0.001))
    output = step.outputs.add(request_id=MARK, token_ids=[300], kv=kv)
    output.finish_reason = sampling_pb2.FINISH_REASON_LENGTH
    output.timings.CopyFrom(worker_pb2.RequestTimings(wait_s=0.01, run_s=0.02, cached_tokens=1))
    output.logprobs.add().entries.add(token_id=300, logprob=-0.5, rank=1)
    part = worker_pb2.StepReport(step=2, duration_s=0.02, load=load)
    part.outputs.add(request_id=MARK, prefilled_tokens=2)
    part.shape.CopyFrom(worker_pb2.StepShape(prefill_requests=1, prefill_tokens=2, prefill_attention_pairs=2.0))
    failed = worker_pb2.RequestFailed(request_id=MARK, kind=worker_pb2.FAILURE_KIND_NOT_ACCEPTING, detail="full")
    closed = worker_pb2.LeaseClosed(lease_id=kv.lease_id, outcome=worker_pb2.LEASE_OUTCOME_PULLED)
    return [
        worker_pb2.SessionResponse(step=step),
        worker_pb2.SessionResponse(step=part),
        worker_pb2.SessionResponse(request_failed=failed),
        worker_pb2.SessionResponse(lease_closed=closed),
        worker_pb2.SessionResponse(load=load),
        worker_pb2.SessionResponse(aborted=worker_pb2.Aborted(request_id=MARK)),
    ]


@dataclass(slots=True)
class ReportTarget:
    """A worker's session, as the router reads it."""

    puppets: list[Puppet]
    kv: worker_pb2.KvHandle
    share: int
    name: str = "worker's session, read by the router"

    def make(self, rng: Random) -> Frames:
        seeds = reports(self.kv)
        frames = [messages.mutated(rng.choice(seeds), rng) for _ in range(rng.randrange(1, 4))]
        description = b""
        if rng.random() < DESCRIBED_SHARE:
            honest = worker_pb2.SessionResponse(description=self.puppets[0].described())
            description = messages.mutated(honest, rng)
        return (description, *frames)

    async def send(self, frames: Frames, rng: Random) -> str:
        puppet = rng.choice(self.puppets)
        async with puppet.free:
            first = frames[0].replace(self.puppets[0].worker_id.encode(), puppet.worker_id.encode())
            known = puppet.known
            said = [_about(frame, rng.choice(known)) if known else frame for frame in frames[1:]]
            await puppet.say(first or None, said)
        return "described itself" if first else "reported"


def _about(frame: bytes, known: tuple[str, int]) -> bytes:
    """Return a frame about a request that the router knows."""
    try:
        response = worker_pb2.SessionResponse.FromString(frame)
    except DecodeError:
        return frame
    request_id, attempt = known
    parts: tuple[Any, ...] = (*response.step.outputs, response.request_failed, response.aborted)
    for part in parts:
        if part.request_id == MARK:
            part.request_id, part.attempt = request_id, attempt
    return response.SerializeToString()


@dataclass(slots=True)
class DeskTarget:
    """The lease desk of an engine, which anybody may connect to."""

    address: ClaimAddress
    share: int
    name: str = "lease desk"

    def make(self, rng: Random) -> Frames:
        lines = [documents.mutated(CLAIM, rng)]
        if rng.random() < 0.2:
            lines.append(documents.mutated({"kind": "confirmed"}, rng))
        return tuple(lines)

    async def send(self, frames: Frames, rng: Random) -> str:
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
        try:
            ending = rng.choice((b"\n", b"\n", b"\n", b"", b"\r\n", b"\n\n", b"\x00\n"))
            with contextlib.suppress(ConnectionError):
                writer.write(ending.join(frames) + ending)
                await writer.drain()
            if not ending:
                return "left in the middle of a line"
            async with asyncio.timeout(PATIENCE_S):
                answer = await reader.readline()
        except TimeoutError:
            raise FaultError("the desk neither answers nor hangs up") from None
        except ConnectionError:
            return "hung up"
        finally:
            writer.close()
        return "refused" if b"gone" in answer else "hung up" if not answer else "answered"


@dataclass(slots=True)
class AnswerTarget:
    """The answers of a hostile lease desk, to a decode worker that was told to pull there."""

    door: Door
    kv: worker_pb2.KvHandle
    share: int
    name: str = "answers of a lease desk"
    _lines: dict[str, Frames] = field(default_factory=dict)
    _server: asyncio.Server | None = None
    _number: int = 0

    def make(self, rng: Random) -> Frames:
        granted = {"kind": "granted", "tokens": 4, "kv_bytes": 229376, "context_digest": "0" * 64, "remaining_s": 4.0}
        later = rng.choice(({"kind": "arrived"}, {"kind": "gone", "reason": "because"}))
        return (documents.mutated(granted, rng), documents.mutated(later, rng))

    async def send(self, frames: Frames, rng: Random) -> str:
        if self._server is None:
            self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self._number += 1
        lease_id = f"fuzz-{self._number}"
        self._lines[lease_id] = frames
        kv = worker_pb2.KvHandle()
        kv.CopyFrom(self.kv)
        kv.lease_id, kv.lease_remaining_s = lease_id, 4.0
        port = self._server.sockets[0].getsockname()[1]
        kv.transfer_params_json = ClaimAddress(host="127.0.0.1", port=port).model_dump_json()
        submit = worker_pb2.Submit(request_id="pull", token_ids=[20, 21, 22, 23], generated_tokens=1, kv_source=kv)
        submit.sampling.max_tokens = 2
        hello = worker_pb2.SessionRequest(hello=worker_pb2.Hello(router_id=f"puller-{self._number}"))
        outcome: list[str] = []

        def enough(answer: worker_pb2.SessionResponse, _count: int) -> bool:
            outcome.extend(
                "computed again" if output.timings.kv_recompute_reason else "pulled"
                for output in answer.step.outputs
                if output.HasField("timings")
            )
            if answer.HasField("request_failed"):
                outcome.append(f"failed: {worker_pb2.FailureKind.Name(answer.request_failed.kind)}")
            return bool(outcome)

        sent = [frame.SerializeToString() for frame in (hello, worker_pb2.SessionRequest(submit=submit))]
        ended = await doors.call(self.door, f"{WORKER}/Session", sent, enough=enough, idle_s=PATIENCE_S)
        self._lines.pop(lease_id, None)
        if not outcome or "ENGINE" in outcome[0]:
            raise FaultError(f"a decode worker answered with {outcome or ended}")
        return outcome[0]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError, KeyError, asyncio.IncompleteReadError):
            claim = json.loads(await reader.readuntil())
            for line in self._lines[claim["lease_id"]]:
                writer.write(line + b"\n")
                await writer.drain()
        writer.close()


@dataclass(slots=True)
class NixlLineTarget:
    """Both sides' reading of lines at the lease desk of a real engine; no engine runs."""

    share: int
    name: str = "lines of a NIXL lease desk"
    _backend: NixlBackend = field(default_factory=lambda: NixlBackend(16))

    def make(self, rng: Random) -> Frames:
        terms = {
            "do_remote_prefill": True, "do_remote_decode": False, "remote_engine_id": "e", "remote_request_id": "r",
            "remote_host": "127.0.0.1", "remote_port": 5600, "tp_size": 1, "remote_block_ids": [[1, 2, 3]],
            "remote_num_tokens": 40, "slos_prefix_digest": "0" * 64, "slos_lease_deadline_s": 5.0,
        }  # fmt: skip
        seed = rng.choice(({"lease_id": "x", "secret": "0"}, {"terms": terms, "remaining_s": 3.0}, {"refused": "gone"}))
        return (documents.mutated(seed, rng) + b"\n",)

    async def send(self, frames: Frames, rng: Random) -> str:
        outcomes = []
        with contextlib.suppress(ValueError):
            self._backend.parse_claim(frames[0])
            outcomes.append("a claim")
        try:
            grant = self._backend.parse_answer(frames[0])
        except (ClaimRefusedError, ValueError):
            outcomes.append("no grant")
        else:
            grant.terms.to_vllm(1.0)
            outcomes.append("a grant")
        assert not self._backend.is_confirmation(b" " + frames[0])
        return ", ".join(outcomes)


def peer_targets(puppets: list[Puppet], decode: Door, desk: ClaimAddress, kv: worker_pb2.KvHandle) -> list[Target]:
    """Return the targets that are peers of routers and engines."""
    return [
        ReportTarget(puppets, kv, 90),
        DeskTarget(desk, 40),
        AnswerTarget(decode, kv, 15),
        NixlLineTarget(20),
    ]


def handle(compatibility: worker_pb2.Compatibility, params: str) -> worker_pb2.KvHandle:
    """Return the handle of a KV cache of four tokens that nobody holds."""
    return worker_pb2.KvHandle(
        lease_id="lease", worker_id="prefill-0", engine_epoch="epoch", lease_remaining_s=4.0, tokens=4,
        bytes=4 * 57_344, compatibility=compatibility, transfer_params_json=params,
    )  # fmt: skip
