"""Forecasts of TTFT and TPOT where a request runs, and the best place for one without a promise.

Times are seconds on the caller's clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.slo.composer.compose import DEFAULT_POLICY
from services.slo.performance import PerformanceModel


@dataclass(frozen=True, slots=True)
class QueuedPrefill:
    """A prompt that waits for a prefill worker."""

    due_s: float
    """Due time by which it is ranked in the queue."""
    tokens: int
    """Number of tokens to compute."""
    guaranteed: bool
    """Whether its contract is guaranteed."""


@dataclass(frozen=True, slots=True)
class PrefillView:
    """A worker that computes prompts, as far as these go."""

    worker_id: str
    """Id of the worker."""
    model: PerformanceModel
    """Model of expected step times."""
    bound: PerformanceModel
    """Upper bound on step times, against which promises are made."""
    max_step_tokens: int
    """Largest number of tokens in a step."""
    busy_until_s: float
    """Time at which the step under way will end."""
    queue: tuple[QueuedPrefill, ...]
    """Prompts that the worker has or will get, in order of due time."""
    kv_tokens: int
    """Number of tokens that its KV cache holds in all."""
    share: float = 1.0
    """Share of its time that prompts get, above 0; streams have the rest."""


@dataclass(frozen=True, slots=True)
class DecodeView:
    """A worker that decodes, as far as its decodes go; requests placed there but still in prefill are counted."""

    worker_id: str
    """Id of the worker."""
    model: PerformanceModel
    """Model of expected step times."""
    bound: PerformanceModel
    """Upper bound on step times, against which promises are made."""
    requests: int
    """Number of requests that decode there, or will."""
    context_tokens: int
    """Context tokens of these requests together."""
    max_running_requests: int
    """Largest number of running requests."""
    kv_tokens_free: int
    """Tokens of KV cache that no request takes, with every request at the length promised to it."""
    kv_tokens: int
    """Number of tokens that its KV cache holds in all."""
    handover_steps: float
    """Expected decode steps from the first token to the second, the transfer apart."""
    handover_steps_bound: float
    """Upper bound on these steps."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """A forecast of a time or a duration, in seconds."""

    expected_s: float
    """Expected value."""
    bound_s: float
    """Value that is not exceeded with the coverage of the bounds that it was made from."""

    def after(self, start_s: float) -> Forecast:
        """Return the forecast counted from `start_s` on."""
        return Forecast(self.expected_s - start_s, self.bound_s - start_s)


@dataclass(frozen=True, slots=True)
class Placement:
    """The workers on which a request runs, and what is expected of it there."""

    prefill_worker_id: str
    """Id of the worker that computes the prompt."""
    decode_worker_id: str
    """Id of the worker that decodes."""
    due_s: float
    """Due time by which the prompt is ranked in the prefill queue."""
    ttft: Forecast
    """Forecast of the TTFT."""
    tpot: Forecast
    """Forecast of the smallest TPOT that every token keeps, which the hand-over before the second token sets."""

    @property
    def local(self) -> bool:
        """Whether the decode worker computes the prompt, so that nothing is handed over."""
        return self.prefill_worker_id == self.decode_worker_id


def may_be_in_time(
    prompt_tokens: int, due_s: float | None, model: PerformanceModel, max_step_tokens: int, now_s: float
) -> bool:
    """Return whether an idle worker could still compute the prompt before its first token is due.

    A request without a promise that may be in time goes to an engine at once, which keeps its contract where that costs
    no promise; the rest can wait in the router.

    Args:
        due_s: when the first token is due; None without a target, for which the answer is False.
    """
    return due_s is not None and now_s + model.prefill_s(prompt_tokens, max_step_tokens) <= due_s


def place_without_promise(
    prompt_tokens: int,
    kv_tokens: int,
    due_s: float,
    prefill: Sequence[PrefillView],
    decode: Sequence[DecodeView],
    arrival_s: float,
    now_s: float,
    cached: Sequence[tuple[str, int]] = (),
) -> Placement | None:
    """Place a request where its first token comes soonest, then where memory is free and decode steps are shortest.

    Args:
        kv_tokens: context that the request will reach.
        due_s: due time by which it is ranked among the prompts.
        prefill: workers that compute prompts; one that is in `decode` too keeps the prompts that it computes.
        decode: workers that decode.
        cached: ids of workers that have a beginning of the prompt in their prefix cache, and how many tokens of it.

    Returns:
        The placement; None if a pool has no worker whose KV cache could ever hold the request.
    """
    decode = [view for view in decode if view.kv_tokens >= kv_tokens]
    both = {view.worker_id: view for view in decode}
    prefill = [view for view in prefill if view.kv_tokens >= (kv_tokens if view.worker_id in both else prompt_tokens)]
    if not prefill or not decode:
        return None
    held = dict(cached)
    ttft, start = min(
        (
            (first_token(max(1, prompt_tokens - held.get(view.worker_id, 0)), due_s, view, arrival_s, now_s), view)
            for view in prefill
        ),
        key=lambda pair: pair[0].expected_s,
    )
    if start.worker_id in both:
        gap = worst_gap(kv_tokens, both[start.worker_id], local=True)
        return Placement(start.worker_id, start.worker_id, due_s, ttft, gap)
    there = min(
        decode,
        key=lambda view: (
            view.requests >= view.max_running_requests or kv_tokens > view.kv_tokens_free,
            view.model.decode_step_s(view.requests + 1, view.context_tokens + kv_tokens),
        ),
    )
    return Placement(start.worker_id, there.worker_id, due_s, ttft, worst_gap(kv_tokens, there))


def first_token(
    prompt_tokens: int, due_s: float, view: PrefillView, arrival_s: float, now_s: float, *, guaranteed: bool = False
) -> Forecast:
    """Forecast the TTFT of a prompt that joins a worker's queue.

    Args:
        prompt_tokens: tokens that have to be computed.
        due_s: due time by which it is ranked in the queue.
    """
    (finish,) = first_tokens([QueuedPrefill(due_s, prompt_tokens, guaranteed)], view, now_s)
    return finish.after(arrival_s)


def first_tokens(joining: Sequence[QueuedPrefill], view: PrefillView, now_s: float) -> list[Forecast]:
    """Forecast when prompts that join a worker's queue together will be prefilled, one entry per prompt in their order.

    Prompts that are due later count as far as they share a step, because all prompts of a step end with it.
    """
    # At equal rank those that are there already go first: the sort is stable.
    ranked = sorted(enumerate([*view.queue, *joining]), key=lambda entry: entry[1].due_s)
    order = [index for index, _ in ranked]
    prompts = [prompt for _, prompt in ranked]
    start_s = max(now_s, view.busy_until_s)
    expected, bound = (
        [
            start_s + (end_s - start_s) / view.share
            for end_s in finish_times_s(prompts, start_s, model, view.max_step_tokens, _longest_step_s(model))
        ]
        for model in (view.model, view.bound)
    )
    places = {index: place for place, index in enumerate(order)}
    first = len(view.queue)
    return [Forecast(expected[places[index]], bound[places[index]]) for index in range(first, first + len(joining))]


def _longest_step_s(model: PerformanceModel) -> float:
    """Return the longest step of prompts that an engine composes when nothing else is configured."""
    return DEFAULT_POLICY.longest_step_s(model.prefill_batch_s(1, 1, 0.5, 1))


def worst_gap(
    kv_tokens: int, view: DecodeView, transfer: Forecast = Forecast(0.0, 0.0), *, local: bool = False
) -> Forecast:
    """Forecast the longest wait for a token of a request that joins a decode worker: usually for the second, handed
    over.

    Args:
        kv_tokens: context that the request will reach.
        transfer: forecast of the transfer of its KV cache; nothing while its source is not known.
        local: whether the worker computed the prompt too, so that nothing is handed over.
    """
    decodes, context_tokens = view.requests + 1, view.context_tokens + kv_tokens
    steps, steps_bound = (1.0, 1.0) if local else (view.handover_steps, view.handover_steps_bound)
    expected_s = steps * view.model.decode_step_s(decodes, context_tokens) + transfer.expected_s
    bound_s = steps_bound * view.bound.decode_step_s(decodes, context_tokens) + transfer.bound_s
    return Forecast(expected_s, bound_s)


def finish_times_s(
    prompts: Sequence[QueuedPrefill],
    start_s: float,
    model: PerformanceModel,
    max_step_tokens: int,
    longest_step_s: float = math.inf,
) -> list[float]:
    """Return when each of these prompts will be prefilled, one entry per prompt.

    Prompts are taken in order, as many into one step as its tokens and time allow, and all prompts of a step end with
    it; a prompt longer than a step is computed in chunks. Prompts with and without a guarantee do not share a step,
    because the latter are held back.

    Args:
        start_s: when the first step begins.
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
            or model.prefill_batch_s(
                batch + 1,
                batch_tokens + following.tokens,
                batch_pairs + following.tokens**2 / 2,
                max_step_tokens,
            )
            > longest_step_s
        ):
            start_s += model.prefill_batch_s(batch, batch_tokens, batch_pairs, max_step_tokens)
            finish_s += [start_s] * batch
            batch_tokens, batch_pairs, batch = 0, 0.0, 0
    return finish_s
