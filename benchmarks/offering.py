"""Offers a workload to a router, open loop, and keeps what was promised and what came."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio

from benchmarks.workload import Offered
from slos_serve.v1 import contract_pb2, inference_pb2, inference_pb2_grpc, sampling_pb2

FIRST_TEXT_TOKEN = 100
TOKEN_RANGE = 40_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. Times in seconds, as the router measured them."""

    offered: Offered
    verdict: str
    """guaranteed, best effort, refused, or the status of an error."""
    kept: bool
    """Every target of its contract was met, promised or not."""
    binding: str = ""
    ttft_s: float = 0.0
    ttft_expected_s: float = 0.0
    ttft_bound_s: float = 0.0
    worst_tpot_s: float = 0.0
    """The smallest TPOT that every token kept."""
    tpot_bound_s: float = 0.0
    ended_s: float = 0.0
    """After the first arrival of the workload."""
    missed: str = ""
    request_id: str = ""
    phases_s: Mapping[str, float] = field(default_factory=dict)
    """Where the time went, by phase."""
    workers: tuple[str, str] = ("", "")
    """Where it was meant to prefill and to decode."""


async def offer(
    address: str, workload: Sequence[Offered], seed: int = 0, progress: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Send every request at its time, whatever the cluster does."""
    rng = random.Random(seed)
    salt = rng.randrange(TOKEN_RANGE)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        began_s = time.monotonic() + 0.1

        async def one(index: int, offered: Offered) -> Outcome:
            await asyncio.sleep(max(0.0, began_s + offered.at_s - time.monotonic()))
            outcome = await _follow(stub, offered, salt + index, began_s)
            progress()
            return outcome

        return list(await asyncio.gather(*(one(index, offered) for index, offered in enumerate(workload))))


async def _follow(stub: inference_pb2_grpc.InferenceAsyncStub, offered: Offered, salt: int, began_s: float) -> Outcome:
    admission, finished = inference_pb2.Admission(), inference_pb2.Finished()
    try:
        async for response in stub.Generate(message(offered, salt)):
            if response.HasField("admission"):
                admission = response.admission
            elif response.HasField("finished"):
                finished = response.finished
    except grpc.aio.AioRpcError as error:
        refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        verdict = "refused" if refused else error.code().name.lower()
        return Outcome(offered, verdict, kept=False, binding=error.details() or "", ended_s=time.monotonic() - began_s)
    guaranteed = admission.verdict == inference_pb2.VERDICT_GUARANTEED
    achieved = finished.achieved
    return Outcome(
        offered,
        "guaranteed" if guaranteed else "best effort",
        achieved.kept,
        admission.reason,
        achieved.ttft_s,
        admission.predicted.ttft_s,
        admission.predicted.ttft_bound_s,
        max((stage.required_tpot_s for stage in achieved.stages), default=0.0),
        admission.predicted.tpot_bound_s,
        time.monotonic() - began_s,
        achieved.missed,
        admission.request_id,
        {name.name: getattr(finished.phases, name.name) for name in finished.phases.DESCRIPTOR.fields},
        (admission.prefill_worker_id, admission.decode_worker_id),
    )


def message(offered: Offered, salt: int) -> inference_pb2.GenerateRequest:
    """A prompt of made-up tokens that no other request shares, and a contract by name."""
    start = 7919 * salt
    ids = [FIRST_TEXT_TOKEN + (17 * position + start) % TOKEN_RANGE for position in range(offered.prompt_tokens)]
    overload = contract_pb2.ON_OVERLOAD_REFUSE if offered.refuse else contract_pb2.ON_OVERLOAD_BEST_EFFORT
    return inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=ids),
        sampling=sampling_pb2.SamplingParams(temperature=0.0, max_tokens=offered.output_tokens, ignore_eos=True),
        contract=contract_pb2.Contract(profile=offered.profile, on_overload=overload),
        application=offered.profile,
    )
