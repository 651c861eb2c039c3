"""A simulated request as the admission core sees it, before its verdict and after."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from services.slo.admission import NO_BLOCKS, Arrival, Progress, PromptBlocks, RequestFacts
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.kv_blocks import shareable_blocks
from simulator.request import OfferedRequest, SimRequest

MOST_OUTPUT_TOKENS = 16_384
"""Output limit of every request: more than any in the workloads generates."""
END_OF_STAGE = "end of stage"
"""Marker that decode stages end with; simulated requests say by a count of tokens where that is."""


class OfferedBlocks:
    """The blocks of a prompt whose workload says which prompts begin alike. Satisfies `PromptBlocks`."""

    __slots__ = ("_offered",)

    def __init__(self, offered: OfferedRequest) -> None:
        self._offered = offered

    def of(self, block_tokens: int) -> Sequence[Hashable]:
        """Return one identity for each full block.

        Raises:
            ValueError: the workload's blocks are no multiple of these.
        """
        offered = self._offered
        each, rest = divmod(offered.prefix_block_tokens, block_tokens)
        if rest:
            raise ValueError(f"{offered.prefix_block_tokens} tokens are no whole number of blocks of {block_tokens}")
        names: list[Hashable] = []
        before = 0
        for identity in offered.prefix:
            before = hash((before, identity))
            names += [(before, part) for part in range(each)]
        return names[: shareable_blocks(offered.prompt_tokens, block_tokens)]


def arrival_of(request: SimRequest, *, length_known: bool) -> Arrival:
    """Return the request as the admission core is told of it.

    Args:
        length_known: it says how long its output will be.
    """
    offered = request.offered
    facts = RequestFacts(
        request.request_id,
        offered.prompt_tokens,
        MOST_OUTPUT_TOKENS,
        tenant=offered.tenant,
        application=offered.application,
        expected_output_tokens=request.output_tokens if length_known else None,
        blocks=_blocks(offered),
    )
    prefill = PrefillTarget(ttft_s=request.ttft_s) if request.ttft_s < math.inf else None
    *first, last = (*request.tpots_s, None)[: max(1, len(request.tpots_s))]
    decode = [DecodeTarget(tpot_s, END_OF_STAGE) for tpot_s in first if tpot_s is not None]
    if last is not None:
        decode.append(DecodeTarget(last))
    asked = offered.contract
    contract = Contract(prefill, tuple(decode), value=asked.value, on_overload=asked.on_overload)
    return Arrival(facts, contract, request.arrival_s)


def _blocks(offered: OfferedRequest) -> PromptBlocks:
    return OfferedBlocks(offered) if offered.prefix else NO_BLOCKS


@dataclass(slots=True, eq=False)
class Admitted:
    """An admitted request: its place in the cluster, kept in `SimRequest.placed`. Satisfies `TrackedRequest`."""

    request: SimRequest
    facts: RequestFacts
    prompt_worker_id: str
    decode_worker_id: str
    guaranteed: bool
    planned: bool
    rank_s: float
    progress: Progress = Progress.QUEUED
    submitted_s: float = 0.0
    believed_cached_tokens: int = 0
    """Tokens of its prompt that its worker is thought to have cached."""
    cached_tokens: int = 0
    """Tokens that the worker did have."""
    untold_tokens: int = 0
    """Tokens of the step that has just ended that a router hears of later than of the rest of the step's report."""
    _stage: int = -1
    """The decode stage that `_tightest_tpot_s` is of."""
    _tightest_tpot_s: float | None = None

    @property
    def prefilled_tokens(self) -> int:
        """What its worker has reported; until its first report, what the worker is thought to have cached."""
        if self.progress is Progress.QUEUED:
            return 0
        if self.progress is not Progress.PREFILLING:
            return self.facts.prompt_tokens
        computed = self.request.work.computed_tokens
        return computed if computed > self.cached_tokens else self.believed_cached_tokens

    @property
    def generated_tokens(self) -> int:
        """Tokens of output that a router has been told of so far."""
        return self.request.generated - self.untold_tokens

    @property
    def next_due_s(self) -> float | None:
        """When its next token is due; None without a target."""
        due_s = self.request.due_s
        return due_s if due_s < math.inf else None

    @property
    def tightest_tpot_s(self) -> float | None:
        """The tightest TPOT of its contract from here on; None without a target."""
        stage = self.request.stage
        if stage != self._stage:
            tpot_s = self.request.tightest_tpot_s
            self._stage, self._tightest_tpot_s = stage, tpot_s if tpot_s < math.inf else None
        return self._tightest_tpot_s


def admitted(request: SimRequest) -> Admitted:
    """Return what is kept of an admitted request."""
    kept = request.placed
    assert isinstance(kept, Admitted)
    return kept
