"""What a worker has promised to other routers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slos_serve.v1 import worker_pb2


@dataclass(frozen=True, slots=True)
class OtherDecodes:
    """Requests of one rate that decode on the worker, or will."""

    tpot_s: float | None
    """None: memory is promised to them, but no rate."""
    requests: int
    tokens: int
    """Context that they are promised memory for."""


@dataclass(frozen=True, slots=True)
class OtherPrompts:
    """Prompts still to be computed."""

    due_in_s: float
    """When the first of them is due; infinite without such a promise."""
    tokens: int


@dataclass(frozen=True, slots=True)
class OtherWork:
    """All of it; empty while a router is alone."""

    decodes: tuple[OtherDecodes, ...] = ()
    prompts: tuple[OtherPrompts, ...] = ()
    """By due time."""

    @property
    def requests(self) -> int:
        return sum(decodes.requests for decodes in self.decodes)

    @property
    def tokens(self) -> int:
        """Context that those who decode are promised memory for."""
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
    """As the load says; nothing if it says nothing."""
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
