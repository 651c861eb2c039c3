"""Clients of a cluster under a benchmark: what each sent, was told and got."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from benchmarks.engine_driver import Tracked
from benchmarks.engine_load import Offered
from services.contract.resolution import in_force
from services.slo.attainment import AttainmentMeter
from slos_serve.contract import contract_to_wire
from slos_serve.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2

PATIENCE_S = 30.0
"""After the last arrival; what is not done by then has missed its contract."""


@dataclass(slots=True)
class Client:
    """One request and what its client was told."""

    tracked: Tracked
    admission: inference_pb2.Admission | None = None
    finished: inference_pb2.Finished | None = None

    @property
    def local(self) -> bool:
        """Meant to prefill where it decodes."""
        told = self.admission
        return told is not None and told.prefill_worker_id == told.decode_worker_id

    @property
    def guaranteed(self) -> bool:
        return self.admission is not None and self.admission.verdict == inference_pb2.VERDICT_GUARANTEED


async def follow(
    stub: inference_pb2_grpc.InferenceAsyncStub, offered: Offered, began_s: float, last: Offered
) -> Client:
    await asyncio.sleep(max(0.0, began_s + offered.at_s - time.monotonic()))
    arrived_s = time.monotonic()
    meter = AttainmentMeter(offered.contract, arrived_s)
    client = Client(
        Tracked(offered.profile, offered.contract, len(offered.token_ids), offered.max_tokens, arrived_s, meter)
    )
    timeout_s = max(0.0, began_s + last.at_s - arrived_s) + PATIENCE_S
    try:
        async for response in stub.Generate(_message(offered), timeout=timeout_s):
            if response.HasField("admission"):
                client.admission = response.admission
            elif response.HasField("tokens"):
                now_s, count = time.monotonic(), len(response.tokens.token_ids)
                meter.note_tokens(count, now_s)
                client.tracked.token_times_s += [now_s] * count
            else:
                client.finished = response.finished
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
    return client


def broken(client: Client) -> dict[str, Any]:
    """What was promised to a client, and what it got."""
    tracked, told = client.tracked, client.admission
    assert told is not None
    return {
        "profile": tracked.profile,
        "prompt_tokens": told.prompt_tokens,
        "worker": told.decode_worker_id,
        "ttft_target_s": tracked.contract.prefill.ttft_s if tracked.contract.prefill else None,
        "ttft_bound_s": told.predicted.ttft_bound_s,
        "ttft_s": tracked.token_times_s[0] - tracked.arrived_s if tracked.token_times_s else None,
        "tpot_target_s": tracked.contract.tightest_tpot_s,
        "tpot_bound_s": told.predicted.tpot_bound_s,
        "missed": client.finished.achieved.missed if client.finished else "not done in time",
        **({} if client.finished is None else phases(client.finished.phases)),
    }


def phases(took: inference_pb2.Phases) -> dict[str, float]:
    """Seconds, of the phases that took any."""
    return {field.name: value for field, value in took.ListFields()}


def _message(offered: Offered) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=offered.token_ids),
        sampling=sampling_pb2.SamplingParams(temperature=0.0, max_tokens=offered.max_tokens, ignore_eos=True),
        contract=contract_to_wire(in_force(offered.contract)),
        application=offered.profile,
    )
