"""What a request can expect where it runs, and where one without a promise runs best. Time is the caller's clock, in
seconds.
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
    """Rank in the queue."""
    tokens: int
    guaranteed: bool


@dataclass(frozen=True, slots=True)
class PrefillView:
    """A worker as far as its prompts go."""

    worker_id: str
    model: PerformanceModel
    """Expected step times."""
    bound: PerformanceModel
    """What promises are made against."""
    max_step_tokens: int
    busy_until_s: float
    """When the step it is working on will end."""
    queue: tuple[QueuedPrefill, ...]
    """Prompts it has or will get, in order of due time."""
    kv_tokens: int
    """What its KV cache holds in all."""
    share: float = 1.0
    """Of its time that prompts get, above 0; streams have the rest."""


@dataclass(frozen=True, slots=True)
class DecodeView:
    """A worker as far as its decodes go; requests placed there but still in prefill are counted."""

    worker_id: str
    model: PerformanceModel
    bound: PerformanceModel
    requests: int
    context_tokens: int
    max_running_requests: int
    kv_tokens_free: int
    """Not taken by anyone, with every request at the length promised to it."""
    kv_tokens: int
    handover_steps: float
    """Decode steps from the first token to the second, expected; the transfer apart."""
    handover_steps_bound: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds: expected, and not exceeded with the coverage of the bounds it was made from."""

    expected_s: float
    bound_s: float

    def after(self, start_s: float) -> Forecast:
        """Counted from then on."""
        return Forecast(self.expected_s - start_s, self.bound_s - start_s)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request runs, and what is expected of it."""

    prefill_worker_id: str
    decode_worker_id: str
    due_s: float
    """Rank in the prefill queue."""
    ttft: Forecast
    tpot: Forecast
    """The smallest TPOT that every token is expected to keep; the second token's hand-over sets it."""

    @property
    def local(self) -> bool:
        """The decode worker computes the prompt: nothing is handed over."""
        return self.prefill_worker_id == self.decode_worker_id


def may_be_in_time(
    prompt_tokens: int, due_s: float | None, model: PerformanceModel, max_step_tokens: int, now_s: float
) -> bool:
    """Whether an idle worker could still compute the prompt before its first token is due.

    What is not promised but may be in time goes to an engine at once, which keeps its contract where that costs no
    promise; the rest can wait in the router. False without a due time.
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
    """Where the first token comes soonest and, apart from that, decode steps are shortest and memory is free.

    Args:
        prefill: a worker that decodes as well keeps the prompts that it computes.
        kv_tokens: context that the request will reach.
        due_s: its rank among the prompts.
        cached: workers that have a beginning of the prompt in their prefix cache, and how many tokens of it.

    Returns:
        None if a pool has no worker whose KV cache could ever hold the request.
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
    """TTFT of a prompt, of which so many tokens have to be computed, that joins a worker's queue with this rank."""
    (finish,) = first_tokens([QueuedPrefill(due_s, prompt_tokens, guaranteed)], view, now_s)
    return finish.after(arrival_s)


def first_tokens(joining: Sequence[QueuedPrefill], view: PrefillView, now_s: float) -> list[Forecast]:
    """When prompts that join a worker's queue together will be prefilled, in their order; on the caller's clock.

    What is due later counts as far as it shares a step: all prompts of a step end with it.
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
    """As engines compose steps when nothing else is configured."""
    return DEFAULT_POLICY.longest_step_s(model.prefill_batch_s(1, 1, 0.5, 1))


def worst_gap(
    kv_tokens: int, view: DecodeView, transfer: Forecast = Forecast(0.0, 0.0), *, local: bool = False
) -> Forecast:
    """The longest wait for a token of a request that joins a decode worker: as a rule for the second, handed over.

    Args:
        transfer: of its KV cache; nothing while it cannot be known where from.
        local: nothing is handed over.
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
    """When each of these prompts will be prefilled, one entry per prompt.

    They are taken in order, as many into one step as its tokens and time allow, and all prompts of a step end with it;
    a prompt longer than a step is computed in chunks. Prompts with and without a guarantee do not share a step: the
    latter are held back.
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
