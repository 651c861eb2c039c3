"""What a scheduler that knows everything in advance could keep at most.

A relaxation: all GPUs are one machine that can split any request at will, memory is plenty, KV caches move at once and
steps take their mean time. Two counts are made, of prompts computed before their first token is due, and of whole
requests computed before their last token is due; whatever can be served is in both, so the smaller is a bound. Each is
the best fractional choice: the sets of work that a preemptive machine finishes in time form a polymatroid, on which the
greedy choice, cheapest request first, is optimal.

What a step costs besides its work, c, is charged to the work in it in proportion. No step that computes a prompt
outlasts the time D from the prompt's arrival until it is due, so that work bears at least c / (D - c) of itself. The k
steps that bring the k tokens of a decode stage end within k TPOTs of its start, so they last one TPOT on average, and
by Jensen's inequality that work bears at least c / (TPOT - c) of itself; with drafts, a TPOT for every token that a
step brings on average at the longest draft. No step has more tokens than its limit either.

A session's later rounds are taken to come as if the rounds before had been answered at once, and to be due as if these
had been answered only just in time: a bound for whoever keeps the rounds before.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numba  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from services.slo.performance import TERMS
from simulator.machine import Machine
from simulator.request import Offered

Floats = npt.NDArray[np.float64]
TOGETHER = 1000
_HALVINGS = 12
_ROUNDING_S = 1e-9
_NEVER_S = 1e9
"""Work that nobody can do in time."""


@dataclass(frozen=True, slots=True)
class _Work:
    """Of one request, in seconds of one worker."""

    release_s: float
    first_due_s: float
    last_due_s: float
    prefill_s: float
    all_s: float


def most_attained(offered: Sequence[Offered], machine: Machine, workers: int) -> float:
    """Share of the requests that can be attained at most.

    Each `TOGETHER` that come one after the other are looked at as if they had the machine to themselves, which makes
    none of them harder to keep: it takes time in proportion to the requests, not to their square.
    """
    blocks = Counter(block for request in offered if request.follow_up is None for block in request.prefix)
    works = [work for request in offered for work in _works(request, machine, blocks)]
    works.sort(key=lambda work: work.release_s)
    kept = sum(_most_kept(works[at : at + TOGETHER], workers) for at in range(0, len(works), TOGETHER))
    return kept / len(works)


def _most_kept(works: Sequence[_Work], workers: int) -> float:
    release_s = np.array([work.release_s for work in works])
    return min(
        _count(release_s, np.array([w.first_due_s for w in works]), np.array([w.prefill_s for w in works]), workers),
        _count(release_s, np.array([w.last_due_s for w in works]), np.array([w.all_s for w in works]), workers),
    )


def _works(first: Offered, machine: Machine, blocks: Mapping[int, int]) -> list[_Work]:
    works = []
    request: Offered | None = first
    earliest_s = latest_s = first.at_s
    # Whoever shares the beginning of a prompt may have computed it; of a session, only the rounds before.
    shared = itertools.takewhile(lambda block: blocks[block] > 1, first.prefix if first.follow_up is None else ())
    computed = first.prefix_block_tokens * sum(1 for _ in shared)
    while request is not None:
        contract = request.contract
        final = request.follow_up is None and contract.session_final and contract.final_decode
        targets = [target.tpot_s for target in (contract.final_decode if final else contract.decode)]
        prompt, output = request.prompt_tokens, request.output_tokens
        ttft_s = contract.ttft_s(machine.idle_prefill_s(prompt))
        stage_one = min(request.first_stage_tokens if len(targets) > 1 else output - 1, output - 1)
        decode_s = stage_one * targets[0] + (output - 1 - stage_one) * targets[-1] if targets else np.inf
        first_due_s = latest_s + (np.inf if ttft_s is None else ttft_s)
        span_s = first_due_s - earliest_s
        prefill_s = _prefill_s(machine, prompt - min(computed, prompt - 1), span_s)
        all_s = prefill_s + _decodes_s(machine, prompt, stage_one, targets[0] if targets else np.inf)
        all_s += _decodes_s(machine, prompt + stage_one, output - 1 - stage_one, targets[-1] if targets else np.inf)
        works.append(_Work(earliest_s, first_due_s, first_due_s + decode_s, prefill_s, all_s))
        earliest_s += prefill_s + request.delay_s
        latest_s = first_due_s + decode_s + request.delay_s
        # Only what a follow-up's prefix says it shares may be found in a cache.
        computed = len(request.prefix) * request.prefix_block_tokens if request.follow_up is not None else 0
        request = request.follow_up
    return works


def _prefill_s(machine: Machine, new_tokens: int, span_s: float) -> float:
    """Of a prompt that cannot be computed in less steps than the time from its release until it is due allows."""
    c, most_tokens = machine.truth.vector[:TERMS], machine.limits.max_step_tokens
    work_s = c[1] * new_tokens + c[2]
    by_tokens_s = c[0] * new_tokens / most_tokens
    by_length_s = work_s * c[0] / (span_s - c[0]) if span_s > c[0] else _NEVER_S
    return float(work_s + max(by_tokens_s, by_length_s))


def _decodes_s(machine: Machine, context: int, tokens: int, tpot_s: float) -> float:
    """Of a stage of so many tokens after so much context."""
    c = machine.truth.vector[:TERMS]
    alpha, drafts = machine.acceptance, machine.max_draft_tokens
    if drafts:
        # A step brings several tokens: it is the tokens that cost, once each, and the overhead of fewer, longer steps.
        accepted = (1 - alpha ** (drafts + 1)) / (1 - alpha)
        work_s, steps, length_s = c[1] * tokens, tokens / accepted, tpot_s * accepted
    else:
        work_s = (c[1] + c[2]) * tokens + c[3] * (context * tokens + tokens * (tokens - 1) / 2)
        steps, length_s = float(tokens), tpot_s
    if tokens == 0:
        return 0.0
    if length_s <= c[0]:
        return _NEVER_S
    least_s = c[1] + (0.0 if drafts else c[2] + c[3] * context)
    by_length_s = steps * least_s * c[0] / (length_s - c[0])
    return float(work_s + max(by_length_s, c[0] * tokens / machine.limits.max_step_tokens))


def _count(release_s: Floats, due_s: Floats, work_s: Floats, workers: int) -> float:
    by_work = np.argsort(work_s, kind="stable")
    by_release = np.argsort(release_s, kind="stable")
    return float(_greedy(release_s, due_s, work_s / workers, by_work, by_release))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _greedy(
    release_s: Floats,
    due_s: Floats,
    work_s: Floats,
    by_work: npt.NDArray[np.int64],
    by_release: npt.NDArray[np.int64],
) -> float:
    taken_s = np.zeros_like(work_s)
    total = 0.0
    for job in by_work:
        taken_s[job] = work_s[job]
        if _feasible(release_s, due_s, taken_s, by_release):
            total += 1.0
            continue
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            share = (low + high) / 2
            taken_s[job] = share * work_s[job]
            if _feasible(release_s, due_s, taken_s, by_release):
                low = share
            else:
                high = share
        taken_s[job] = low * work_s[job]
        total += high
    return total


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _feasible(release_s: Floats, due_s: Floats, work_s: Floats, by_release: npt.NDArray[np.int64]) -> bool:
    """Earliest deadline first, which finishes everything in time if anything does."""
    heap = [(np.inf, -1)]
    left_s = work_s.copy()
    now_s = 0.0
    count = len(by_release)
    following = 0
    while True:
        while following < count and (release_s[by_release[following]] <= now_s or len(heap) == 1):
            job = by_release[following]
            if left_s[job] > 0.0:
                if len(heap) == 1:
                    now_s = max(now_s, release_s[job])
                heapq.heappush(heap, (due_s[job], job))
            following += 1
        if len(heap) == 1:
            return True
        due, job = heap[0]
        until_s = now_s + left_s[job]
        if following < count and release_s[by_release[following]] < until_s:
            at_s = release_s[by_release[following]]
            left_s[job] -= at_s - now_s
            now_s = at_s
            if now_s > due + _ROUNDING_S:
                return False
            continue
        now_s = until_s
        if now_s > due + _ROUNDING_S:
            return False
        heapq.heappop(heap)
