"""The first rule of admission: predict TTFT and decode step time, and promise what the prediction allows.

A prefill worker works through its queue in order of due time; a decode worker steps all its requests together. A
request is guaranteed if its own targets hold under the prediction and no earlier guarantee breaks. Time is the caller's
clock, in seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from services.slo.contract import Contract
from services.slo.performance import PerformanceModel

HANDOVER_STEPS = 3
"""Decode steps from the first token to the second: receive at a step's end, read, notice, run. Measured with NIXL on a
busy decode worker; the transfer itself is small beside them."""


class Binding(enum.Enum):
    """The resource that keeps a contract from being guaranteed, in words for a client."""

    NOTHING = ""
    NO_CONTRACT = "no contract"
    PREFILL_TIME = "prefill time: the first token would be late"
    EARLIER_GUARANTEE = "prefill time: an earlier guarantee would break"
    DECODE_RATE = "decode rate: a step would be too long"
    HANDOVER = "decode rate: the hand-over would make the second token late"
    DECODE_SLOTS = "decode rate: as many requests as a worker can run"
    KV_MEMORY = "KV memory"


@dataclass(frozen=True, slots=True)
class QueuedPrefill:
    """A prompt that waits for a prefill worker."""

    due_s: float
    tokens: int
    guaranteed: bool


@dataclass(frozen=True, slots=True)
class PrefillView:
    """A prefill worker as the planner sees it."""

    worker_id: str
    model: PerformanceModel
    """Expected step times."""
    bound: PerformanceModel
    """What promises are made against."""
    max_step_tokens: int
    busy_until_s: float
    """When the step it is working on will end."""
    waiting: tuple[QueuedPrefill, ...]
    """What it was given already for the steps after that; it takes them in this order."""
    queue: tuple[QueuedPrefill, ...]
    """What the router still holds for it, in order of due time."""
    kv_tokens: int
    """What its KV cache holds in all."""


@dataclass(frozen=True, slots=True)
class DecodeView:
    """A decode worker as the planner sees it; requests placed there but still in prefill are counted."""

    worker_id: str
    model: PerformanceModel
    """Expected step times."""
    bound: PerformanceModel
    """What promises are made against."""
    requests: int
    context_tokens: int
    tightest_tpot_s: float | None
    """Over the guaranteed requests there."""
    max_running_requests: int
    kv_tokens_free: int
    """Not promised to anyone, with every request at its full length."""
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that wants to be placed. The contract is resolved: no slowdowns."""

    arrival_s: float
    prompt_tokens: int
    max_output_tokens: int
    contract: Contract


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request runs, what is expected of it, and whether it is promised."""

    prefill_worker_id: str
    decode_worker_id: str
    due_s: float
    """Rank in the prefill queue."""
    predicted_ttft_s: float
    predicted_tpot_s: float
    """The smallest TPOT that every token is expected to keep; the second token's hand-over sets it."""
    ttft_bound_s: float
    tpot_bound_s: float
    binding: Binding
    """What forbids a guarantee."""

    @property
    def guaranteed(self) -> bool:
        return self.binding is Binding.NOTHING


def place(
    ask: Ask,
    prefill: Sequence[PrefillView],
    decode: Sequence[DecodeView],
    now_s: float,
    best_effort_patience_s: float,
) -> Placement | None:
    """Choose the pair of workers with the best prediction and say whether the contract can be promised there.

    Args:
        best_effort_patience_s: a request without a guarantee is ranked as if due this long after its arrival, so that
            it cannot starve.

    Returns:
        None if a pool has no worker whose KV cache could ever hold the request.
    """
    kv_tokens = ask.prompt_tokens + ask.max_output_tokens
    prefill = [view for view in prefill if view.kv_tokens >= ask.prompt_tokens]
    decode = [view for view in decode if view.kv_tokens >= kv_tokens]
    if not prefill or not decode:
        return None
    rate = min(
        (_decode_fit(ask, view, kv_tokens) for view in decode),
        key=lambda fit: (fit.binding is not Binding.NOTHING, fit.expected_s),
    )
    ttft_s = ask.contract.ttft_s(0.0)
    best_effort_due_s = ask.arrival_s + best_effort_patience_s
    due_s = best_effort_due_s if ttft_s is None else ask.arrival_s + ttft_s

    wants_promise = ask.contract.promises_anything
    fits = [_prefill_fit(ask, view, due_s, now_s, guaranteed=wants_promise) for view in prefill]
    # Among workers that can promise it the quickest, not the best known: a new one has wide bounds and must learn.
    start = min(fits, key=lambda fit: (fit.breaks_guarantee, fit.bound_s > due_s, fit.expected_s))
    binding = rate.binding
    if not wants_promise:
        binding = Binding.NO_CONTRACT
    elif ttft_s is not None and start.breaks_guarantee:
        binding = Binding.EARLIER_GUARANTEE
    elif ttft_s is not None and start.bound_s > due_s:
        binding = Binding.PREFILL_TIME
    if binding is not Binding.NOTHING:
        due_s = best_effort_due_s
        fits = [_prefill_fit(ask, view, due_s, now_s, guaranteed=False) for view in prefill]
        start = min(fits, key=lambda fit: (fit.breaks_guarantee, fit.expected_s))
    return Placement(
        prefill_worker_id=start.worker_id,
        decode_worker_id=rate.worker_id,
        due_s=due_s,
        predicted_ttft_s=start.expected_s - ask.arrival_s,
        predicted_tpot_s=rate.expected_s,
        ttft_bound_s=start.bound_s - ask.arrival_s,
        tpot_bound_s=rate.bound_s,
        binding=binding,
    )


def idle_prefill_s(prompt_tokens: int, prefill: Sequence[PrefillView]) -> float:
    """Prefill time of a prompt on the fastest worker, were it idle: what a slowdown is a multiple of."""
    return min(view.model.prefill_s(prompt_tokens, view.max_step_tokens) for view in prefill)


def idle_decode_step_s(prompt_tokens: int, decode: Sequence[DecodeView]) -> float:
    """Step time of a single decode on the fastest worker, were it idle."""
    return min(view.model.decode_step_s(1, prompt_tokens) for view in decode)


@dataclass(frozen=True, slots=True)
class _DecodeFit:
    """The TPOT that a request would see on a worker, and what forbids a guarantee there."""

    worker_id: str
    expected_s: float
    bound_s: float
    binding: Binding


@dataclass(frozen=True, slots=True)
class _PrefillFit:
    """When a prompt would be done on a worker, and whether a guaranteed one would be late because of it."""

    worker_id: str
    expected_s: float
    bound_s: float
    breaks_guarantee: bool


def _decode_fit(ask: Ask, view: DecodeView, kv_tokens: int) -> _DecodeFit:
    decodes, context_tokens = view.requests + 1, view.context_tokens + kv_tokens
    step_bound_s = view.bound.decode_step_s(decodes, context_tokens)
    targets = [target for target in (view.tightest_tpot_s, ask.contract.tightest_tpot_s) if target is not None]
    binding = Binding.NOTHING
    if targets and step_bound_s > min(targets):
        binding = Binding.DECODE_RATE
    elif ask.contract.decode and HANDOVER_STEPS * step_bound_s > ask.contract.decode[0].tpot_s:
        binding = Binding.HANDOVER
    elif view.requests >= view.max_running_requests:
        binding = Binding.DECODE_SLOTS
    elif kv_tokens > view.kv_tokens_free:
        binding = Binding.KV_MEMORY
    expected_s = HANDOVER_STEPS * view.model.decode_step_s(decodes, context_tokens)
    return _DecodeFit(view.worker_id, expected_s, HANDOVER_STEPS * step_bound_s, binding)


def finish_times_s(
    prompts: Sequence[QueuedPrefill], start_s: float, model: PerformanceModel, max_step_tokens: int
) -> list[float]:
    """When each of these prompts will be prefilled, one entry per prompt.

    The engine takes them in order, as many into one step as `max_step_tokens` allow, and all prompts of a step end with
    it; a prompt longer than a step is computed in chunks. Prompts with and without a guarantee do not share a step: the
    router holds the latter back.
    """
    finish_s: list[float] = []
    batch_tokens, batch_pairs, batch = 0, 0.0, 0
    for index, prompt in enumerate(prompts):
        batch_tokens += prompt.tokens
        batch_pairs += prompt.tokens**2 / 2
        batch += 1
        following = prompts[index + 1] if index + 1 < len(prompts) else None
        if (
            following is None
            or following.guaranteed is not prompt.guaranteed
            or batch_tokens + following.tokens > max_step_tokens
        ):
            start_s += model.prefill_batch_s(batch, batch_tokens, batch_pairs, max_step_tokens)
            finish_s += [start_s] * batch
            batch_tokens, batch_pairs, batch = 0, 0.0, 0
    return finish_s


def _prefill_fit(ask: Ask, view: PrefillView, due_s: float, now_s: float, *, guaranteed: bool) -> _PrefillFit:
    mine = QueuedPrefill(due_s, ask.prompt_tokens, guaranteed)
    position = len(view.waiting) + sum(queued.due_s <= due_s for queued in view.queue)
    before = (*view.waiting, *view.queue)
    after = (*before[:position], mine, *before[position:])
    start_s = max(now_s, view.busy_until_s)
    expected_s = finish_times_s(after, start_s, view.model, view.max_step_tokens)
    bound_s = finish_times_s(after, start_s, view.bound, view.max_step_tokens)
    others_s = (*bound_s[:position], *bound_s[position + 1 :])
    was_s = finish_times_s(before, start_s, view.bound, view.max_step_tokens)
    breaks = any(
        queued.guaranteed and then_s <= queued.due_s < other_s
        for queued, other_s, then_s in zip(before, others_s, was_s, strict=True)
    )
    return _PrefillFit(view.worker_id, expected_s[position], bound_s[position], breaks)
