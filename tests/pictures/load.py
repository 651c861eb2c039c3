"""Requests that make a cluster worth a picture: promises of every profile, best effort, and a few refusals."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import TYPE_CHECKING

import grpc

from slos_serve.v1 import contract_pb2, inference_pb2
from tests.support.cluster import greedy

if TYPE_CHECKING:
    from tests.support.cluster import ClusterUnderTest

PROFILES = ("chatbot", "coder", "summarizer", "tool_use")
TTFT_S, TPOT_S = 5.0, 1.0
"""Loose, so that promises are kept on a machine that does other work too."""
FOLLOWED = "checkout-assistant-42"


def impossible() -> inference_pb2.GenerateRequest:
    """Return a request that is refused, whatever else there is to do."""
    request = followed()
    request.request_id = ""
    request.contract.stages[0].prefill.ttft_s = 1e-4
    request.contract.on_overload = contract_pb2.ON_OVERLOAD_REFUSE
    return request


def asked(random_numbers: random.Random) -> inference_pb2.GenerateRequest:
    """Return a request of some profile; one in five has no contract, and one in fifteen an impossible one."""
    prompt = list(range(20, 20 + random_numbers.randrange(50, 600)))
    request = greedy(prompt, random_numbers.randrange(8, 40))
    kind = random_numbers.random()
    if kind < 0.2:
        return request
    if kind > 14 / 15:
        return impossible()
    request.contract.profile = random_numbers.choice(PROFILES)
    request.tenant, request.application = "shop", "assistant"
    _ask(request, TTFT_S, TPOT_S)
    return request


def followed() -> inference_pb2.GenerateRequest:
    """Return the request whose own page is shown; its id is `FOLLOWED`."""
    request = greedy(list(range(20, 500)), 60, request_id=FOLLOWED)
    request.tenant, request.application = "shop", "assistant"
    request.contract.profile = "chatbot"
    _ask(request, 0.5, 0.25)
    return request


def _ask(request: inference_pb2.GenerateRequest, ttft_s: float, tpot_s: float) -> None:
    request.contract.stages.add().prefill.ttft_s = ttft_s
    request.contract.stages.add().decode.tpot_s = tpot_s


def send(cluster: ClusterUnderTest, seconds: float, per_second: float, seed: int = 1) -> None:
    """Send requests for a while, and return when most have been answered; refusals are expected."""
    random_numbers = random.Random(seed)
    ends_s = time.monotonic() + seconds

    def one(request: inference_pb2.GenerateRequest) -> None:
        with contextlib.suppress(grpc.RpcError):  # Some are refused; what else fails is among the figures.
            cluster.generate(request)

    while time.monotonic() < ends_s:
        threading.Thread(target=one, args=(asked(random_numbers),), daemon=True).start()
        time.sleep(random_numbers.expovariate(per_second))
