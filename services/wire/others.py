"""The work that a worker has promised to other routers than the one that reads it, as a message."""

from __future__ import annotations

import math

from services.slo.admission import NO_OTHERS, OtherDecodes, OtherPrompts, OtherWork
from slos_serve.v1 import worker_pb2


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
