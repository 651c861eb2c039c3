"""The work that a worker has promised to other routers than the one that reads it, as a message."""

from __future__ import annotations

import math

from services.slo.admission import NO_OTHERS, OtherDecodes, OtherPrompts, OtherWork
from services.slo.contract import MAX_TARGET_S, MIN_TARGET_S
from services.wire.error import WireError, figures, finite
from slos_serve.v1 import worker_pb2

MOST_ENTRIES = 256
"""Rates, and prompts, that are read of one report: several times what a worker tells. The planner compares each prompt
with each other one."""


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
    """Read the work of other routers from a load report; a report without any means none.

    Raises:
        WireError: a figure is out of range, or there are more than `MOST_ENTRIES` rates or prompts.
    """
    if not load.HasField("others"):
        return NO_OTHERS
    for name, entries in (("decodes", load.others.decodes), ("prompts", load.others.prompts)):
        if len(entries) > MOST_ENTRIES:
            raise WireError(f"load.others.{name}", f"at most {MOST_ENTRIES} entries; got {len(entries)}")
    for index, decodes in enumerate(load.others.decodes):
        path = f"load.others.decodes[{index}]"
        figures(path, decodes, ("requests", "tokens", "tpot_s"))
        if decodes.HasField("tpot_s") and not MIN_TARGET_S <= decodes.tpot_s <= MAX_TARGET_S:
            bounds = f"at least {MIN_TARGET_S:g} s and at most {MAX_TARGET_S:g} s"
            raise WireError(f"{path}.tpot_s", f"must be {bounds}; got {decodes.tpot_s}")
    for index, prompts in enumerate(load.others.prompts):
        figures(f"load.others.prompts[{index}]", prompts, ("tokens",))
        if prompts.HasField("due_in_s"):
            finite(f"load.others.prompts[{index}].due_in_s", prompts.due_in_s)
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
