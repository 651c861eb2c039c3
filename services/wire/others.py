"""The work that a worker has promised to other routers than the one that reads it, and its conversion."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slos_serve.v1 import worker_pb2


@dataclass(frozen=True, slots=True)
class OtherDecodes:
    """Requests of other routers with one TPOT target that decode on the worker, or will."""

    tpot_s: float | None
    """TPOT target in seconds; None: memory is promised to the requests, but no rate."""
    requests: int
    tokens: int
    """Tokens of context for which the requests are promised memory."""


@dataclass(frozen=True, slots=True)
class OtherPrompts:
    """Prompts of other routers that the worker has yet to compute."""

    due_in_s: float
    """Seconds until the first of the prompts is due; infinite without a promise."""
    tokens: int
    """Prompt tokens that are left to compute."""


@dataclass(frozen=True, slots=True)
class OtherWork:
    """All work that a worker has promised to other routers; empty while one router uses it alone."""

    decodes: tuple[OtherDecodes, ...] = ()
    prompts: tuple[OtherPrompts, ...] = ()
    """Prompts, the earliest due first."""

    @property
    def requests(self) -> int:
        """Number of requests that decode, or will."""
        return sum(decodes.requests for decodes in self.decodes)

    @property
    def tokens(self) -> int:
        """Tokens of context for which decoding requests are promised memory."""
        return sum(decodes.tokens for decodes in self.decodes)


NO_OTHERS = OtherWork()


def others_to_wire(others: OtherWork) -> worker_pb2.OtherWork:
    return worker_pb2.OtherWork(
        decodes=[
            worker_pb2.OtherDecodes(tpot_s=decodes.tpot_s, requests=decodes.requests, tokens=decodes.tokens)
            for decodes in others.decodes
        ],
        prompts=[
            worker_pb2.OtherPrompts(
                due_in_s=prompts.due_in_s if prompts.due_in_s < math.inf else None, tokens=prompts.tokens
            )
            for prompts in others.prompts
        ],
    )


def others_from_wire(load: worker_pb2.WorkerLoad) -> OtherWork:
    """Read the work of other routers from a load report; a report without any means none."""
    if not load.HasField("others"):
        return NO_OTHERS
    return OtherWork(
        tuple(
            OtherDecodes(decodes.tpot_s if decodes.HasField("tpot_s") else None, decodes.requests, decodes.tokens)
            for decodes in load.others.decodes
        ),
        tuple(
            OtherPrompts(prompts.due_in_s if prompts.HasField("due_in_s") else math.inf, prompts.tokens)
            for prompts in load.others.prompts
        ),
    )
