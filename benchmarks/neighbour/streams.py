"""Promised streams, each followed by the next, and what became of every one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from slos_serve.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2

PATIENCE_S = 300.0
"""Seconds after which a stream is given up; only a hung one takes so long."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The contract of the streams, and their size in tokens."""

    ttft_s: float
    tpot_s: float
    prompt_tokens: int = 100
    output_tokens: int = 40


@dataclass(frozen=True, slots=True)
class Ended:
    """One stream as its client saw it."""

    guaranteed: bool
    kept: bool
    restarts: int
    tokens: int
    error: str = ""
    """Name of the status that ended it; empty if it was complete."""
    missed: str = ""


async def follow(address: str, lanes: int, seconds: float, wanted: Wanted) -> list[Ended]:
    """Keep so many streams running for so long, and return all of them once the last has ended."""
    end_s = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        found = await asyncio.gather(*(_lane(stub, lane, end_s, wanted) for lane in range(lanes)))
    return [ended for lane in found for ended in lane]


async def _lane(
    stub: inference_pb2_grpc.InferenceAsyncStub, lane: int, end_s: float, wanted: Wanted
) -> Sequence[Ended]:
    found = []
    number = 0
    while time.monotonic() < end_s:
        number += 1
        found.append(await _stream(stub, _request(lane, number, wanted)))
        if found[-1].error:
            # Whoever is refused asks again a moment later, as a client does.
            await asyncio.sleep(0.2)
    return found


def _request(lane: int, number: int, wanted: Wanted) -> inference_pb2.GenerateRequest:
    first = 100 + 50 * lane + number % 50
    request = inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=range(first, first + wanted.prompt_tokens)),
        sampling=sampling_pb2.SamplingParams(temperature=0.0, max_tokens=wanted.output_tokens, ignore_eos=True),
        application="neighbour",
    )
    request.contract.stages.add().prefill.ttft_s = wanted.ttft_s
    request.contract.stages.add().decode.tpot_s = wanted.tpot_s
    return request


async def _stream(stub: inference_pb2_grpc.InferenceAsyncStub, request: inference_pb2.GenerateRequest) -> Ended:
    guaranteed, tokens = False, 0
    try:
        async for response in stub.Generate(request, timeout=PATIENCE_S):
            match response.WhichOneof("event"):
                case "admission":
                    guaranteed = response.admission.verdict == inference_pb2.VERDICT_GUARANTEED
                case "tokens":
                    tokens += len(response.tokens.token_ids)
                case "finished":
                    achieved = response.finished.achieved
                    return Ended(guaranteed, achieved.kept, response.finished.restarts, tokens, missed=achieved.missed)
    except grpc.aio.AioRpcError as error:
        return Ended(guaranteed, False, 0, tokens, error.code().name)
    return Ended(guaranteed, False, 0, tokens, "no end")
