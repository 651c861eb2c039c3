"""What a hostile client tries. Each attack is one attempt, which is answered or refused and then tried again."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from slos_serve.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2, worker_pb2

MIB = 2**20
LARGE = (("grpc.max_send_message_length", 64 * MIB), ("grpc.max_metadata_size", 64 * 1024))
ATTEMPT_S = 20.0
"""Seconds after which an attempt is given up."""
METHODS = ("Generate", "Quote", "Cancel", "GetClusterState", "WatchClusterState")
SERVICE = "/slos_serve.v1.Inference/"


@dataclass(slots=True)
class Attacker:
    """One hostile client of a router and its gateway, over one connection to each and as many more as it likes."""

    router: str
    gateway: str
    """host:port of the gateway's HTTP."""
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    _channel: grpc.aio.Channel | None = None
    _number: int = 0

    @property
    def channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.router, options=LARGE)
        return self._channel

    @property
    def stub(self) -> inference_pb2_grpc.InferenceAsyncStub:
        return inference_pb2_grpc.InferenceStub(self.channel)

    def fresh(self) -> str:
        """Return an id that was not used before."""
        self._number += 1
        return f"hostile-{self._number}-{self.rng.getrandbits(64):x}"

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def quote(self, request: inference_pb2.GenerateRequest) -> str:
        await self.stub.Quote(inference_pb2.QuoteRequest(request=request), timeout=ATTEMPT_S)
        return "answered"

    async def generate(self, request: inference_pb2.GenerateRequest, answers: int = 10**6) -> str:
        """Ask, read so many messages, and leave."""
        call = self.stub.Generate(request, timeout=ATTEMPT_S)
        try:
            for _ in range(answers):
                if await call.read() is grpc.aio.EOF:
                    return "answered"
            return "left"
        finally:
            call.cancel()

    async def http(self, body: bytes, path: str = "/v1/completions", pause_s: float = 0.0) -> str:
        """Post a body, all at once or a byte at a time; return the status."""
        host, _, port = self.gateway.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            writer.write(head.encode() + b"\r\nconnection: close\r\n\r\n")
            if pause_s:
                for byte in body:
                    writer.write(bytes((byte,)))
                    await writer.drain()
                    await asyncio.sleep(pause_s)
            else:
                writer.write(body)
                await writer.drain()
            line = await reader.readline()
            return line.split()[1].decode() if line else "hung up"
        finally:
            writer.close()


async def letters(attacker: Attacker) -> str:
    """Ask for a quote on four megabytes of letters without a blank."""
    return await attacker.quote(inference_pb2.GenerateRequest(text="a" * (4 * MIB - 1000)))


async def empty_messages(attacker: Attacker) -> str:
    """Ask for a quote on 400,000 empty messages."""
    request = inference_pb2.GenerateRequest()
    request.chat.messages.extend([inference_pb2.ChatMessage(role="user")] * 400_000)
    return await attacker.quote(request)


async def objects_for_prompt(attacker: Attacker) -> str:
    """Post a body in which every one of 200,000 elements is wrong."""
    return await attacker.http(b'{"prompt": [' + b"{}," * 200_000 + b"{}]}")


async def nested(attacker: Attacker) -> str:
    """Post a body that nests 100,000 deep."""
    return await attacker.http(b'{"messages": [], "tools": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


async def huge_names(attacker: Attacker) -> str:
    """Name a tenant of one megabyte."""
    return await attacker.generate(inference_pb2.GenerateRequest(text="x", tenant=attacker.fresh() + "t" * MIB))


async def many_names(attacker: Attacker) -> str:
    """Name a new tenant, application and session each time, as long as they may be."""
    name = attacker.fresh().ljust(256, "n")
    request = inference_pb2.GenerateRequest(text="x", tenant=name, application=name)
    request.contract.session_id = name
    request.sampling.max_tokens = 1
    return await attacker.generate(request)


async def stop_strings(attacker: Attacker) -> str:
    """Generate 300 tokens with 64 overlapping stop strings."""
    stops = ["a" * 120 + chr(98 + index % 25) + str(index) for index in range(64)]
    sampling = sampling_pb2.SamplingParams(max_tokens=300, ignore_eos=True, stop=stops, logit_bias={66: 100.0})
    return await attacker.generate(inference_pb2.GenerateRequest(text="aaaa", sampling=sampling))


async def slowdown(attacker: Attacker) -> str:
    """Ask for a slowdown that overflows when it is turned into seconds."""
    request = inference_pb2.GenerateRequest(text="x" * 2000)
    request.contract.stages.add().prefill.max_slowdown = attacker.rng.choice((1.7e308, 1e6, float("inf"), float("nan")))
    return await attacker.generate(request, answers=1)


async def watch(attacker: Attacker) -> str:
    """Watch the state of the cluster at 10 Hz for a while."""
    call = attacker.stub.WatchClusterState(inference_pb2.WatchClusterStateRequest(interval_s=0.1), timeout=ATTEMPT_S)
    for _ in range(20):
        await call.read()
    call.cancel()
    return "answered"


async def burn_ids(attacker: Attacker) -> str:
    """Leave while an id is being reserved, and use one twice."""
    request = inference_pb2.GenerateRequest(text="x", request_id=attacker.fresh())
    request.sampling.max_tokens = 1
    call = attacker.stub.Generate(request)
    await asyncio.sleep(attacker.rng.random() * 0.003)
    call.cancel()
    return await attacker.generate(request)


async def guess_ids(attacker: Attacker) -> str:
    """Cancel requests whose ids are guessed."""
    guess = attacker.rng.choice(("chatcmpl-", "cmpl-", "router-1-", "req-", "")) + str(attacker.rng.randrange(10**6))
    await attacker.stub.Cancel(inference_pb2.CancelRequest(request_id=guess), timeout=ATTEMPT_S)
    return "cancelled"


async def abandon(attacker: Attacker) -> str:
    """Ask for long answers and leave at once."""
    request = inference_pb2.GenerateRequest(text="tell me everything " * 50)
    request.sampling.max_tokens = 2000
    return await attacker.generate(request, answers=attacker.rng.randrange(1, 4))


async def long_prompts(attacker: Attacker) -> str:
    """Ask for a prompt that fills most of the context, as best effort."""
    ids = [attacker.rng.randrange(100, 1000) for _ in range(6000)]
    request = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=ids))
    request.sampling.max_tokens = 8
    return await attacker.generate(request, answers=3)


async def greedy_contracts(attacker: Attacker) -> str:
    """Ask for promises of the highest value that is allowed, and leave."""
    request = inference_pb2.GenerateRequest(text="now " * 100)
    request.contract.value = 1e6
    request.contract.stages.add().prefill.ttft_s = 1e-6
    request.contract.stages.add().decode.tpot_s = 1e-6
    return await attacker.generate(request, answers=1)


async def half_open(attacker: Attacker) -> str:
    """Open connections to both doors, say half a word, and hold them."""
    with contextlib.suppress(OSError):
        async with contextlib.AsyncExitStack() as stack:
            for address in (attacker.router, attacker.gateway) * 20:
                host, _, port = address.rpartition(":")
                _, writer = await asyncio.open_connection(host, int(port))
                stack.callback(writer.close)
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM" if address == attacker.router else b"POST /v1/comp")
            await asyncio.sleep(5.0)
    return "held"


async def slow_body(attacker: Attacker) -> str:
    """Post a body one byte at a time."""
    return await attacker.http(b'{"prompt": "x", "max_tokens": 1}', pause_s=0.2)


async def malformed(attacker: Attacker) -> str:
    """Send noise to every method."""
    content = attacker.rng.randbytes(attacker.rng.choice((1, 20, 500)))
    method: Any = attacker.channel.unary_stream(SERVICE + attacker.rng.choice(METHODS))
    call = method(content, timeout=ATTEMPT_S)
    await call.read()
    call.cancel()
    return "answered"


async def large_metadata(attacker: Attacker) -> str:
    """Send more metadata than a call may have."""
    metadata = (("x-tenant-id", "t" * 30_000),)
    await attacker.stub.Quote(inference_pb2.QuoteRequest(), metadata=metadata, timeout=ATTEMPT_S)
    return "answered"


async def drain(attacker: Attacker) -> str:
    """Tell the router's port to drain, as if it were a worker's."""
    method: Any = attacker.channel.unary_unary("/slos_serve.v1.Worker/Drain")
    await method(worker_pb2.DrainRequest(grace_s=0.0).SerializeToString(), timeout=ATTEMPT_S)
    return "drained"


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack, and how hard it is tried."""

    attempt: Callable[[Attacker], Awaitable[str]]
    together: int = 1
    """Attempts at the same time."""
    pause_s: float = 0.05
    """Seconds between two attempts."""


ATTACKS: Mapping[str, Attack] = {
    "4 MB of letters": Attack(letters, 2, 0.2),
    "400,000 empty messages": Attack(empty_messages, 1, 0.5),
    "a prompt of 200,000 objects": Attack(objects_for_prompt, 2, 0.2),
    "JSON that nests 100,000 deep": Attack(nested, 1, 0.2),
    "a tenant of 1 MB": Attack(huge_names, 1, 0.2),
    "new names each time": Attack(many_names, 4),
    "64 overlapping stop strings": Attack(stop_strings, 2),
    "a slowdown of 1.7e308": Attack(slowdown, 2),
    "watching at 10 Hz": Attack(watch, 20),
    "ids burned": Attack(burn_ids, 4),
    "ids guessed": Attack(guess_ids, 4),
    "answers abandoned": Attack(abandon, 4),
    "prompts of 6,000 tokens": Attack(long_prompts, 2),
    "impossible contracts of the highest value": Attack(greedy_contracts, 4),
    "half-open connections": Attack(half_open, 2),
    "bodies byte by byte": Attack(slow_body, 10),
    "noise": Attack(malformed, 4),
    "30 kB of metadata": Attack(large_metadata, 1, 0.2),
    "a drain at the router": Attack(drain, 1, 0.2),
}
