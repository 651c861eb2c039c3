"""The clairvoyant bound: the share of requests that no scheduler can exceed, even if it knows everything in advance.

It solves a relaxation: all GPUs are one machine that can split any request at will, KV caches move at once and steps
take their mean time. Two counts are made, of prompts computed before their first token is due, and of whole requests
computed before their last token is due; whatever can be served is in both, so the smaller is a bound. Each is the best
fractional choice of `simulator.bound_counts`.

What a step costs besides its work, c, is charged to the work in it, in two ways, each of which charges a step no more
than c, so that any mixture of them does:

- By time. No step that computes a prompt outlasts the time D from the prompt's arrival until it is due, so that work
  bears at least c / (D - c) of itself. The k steps that bring the k tokens of a decode stage end within k TPOTs of its
  start, so they last one TPOT on average, and by Jensen's inequality that work bears at least c / (TPOT - c) of itself;
  with drafts, a TPOT for every token that a step brings on average at the longest draft.
- By memory. A step decodes only what has its KV cache on the worker, so that a request bears as much of c as its
  context is of the worker's memory.

A session's later rounds are taken to come as if the rounds before had been answered by a cluster that does nothing
else, and to be due as if these had been answered only just in time: a bound for whoever keeps the rounds before.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.slo.performance import TERMS
from simulator.bound_counts import Floats, Jobs, most_in_bursts, most_on_grid
from simulator.machine import Machine
from simulator.request import OfferedRequest

BY_MEMORY = (0.0, 0.5, 1.0)
"""Shares of a step's overhead that are charged by memory, tried one after the other; the rest is charged by time."""
_NEVER_S = 1e9
"""Seconds of work that stand for what nobody can do in time."""


@dataclass(frozen=True, slots=True)
class _Cost:
    """The cost of computing something, in seconds of one worker.

    Work bears a part of the overhead of the steps it is in, which can be charged in two ways: see the module.
    """

    work_s: float
    by_time_s: float
    """Its part of the overhead if all of that is charged by time."""
    by_memory_s: float = 0.0
    """Its part of the overhead if all of that is charged by memory."""

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(self.work_s + other.work_s, self.by_time_s + other.by_time_s, self.by_memory_s + other.by_memory_s)


@dataclass(frozen=True, slots=True)
class _BoundedRequest:
    """One request of a session as the bound sees it: when it may be computed, until when, and what it costs."""

    release_s: float
    first_due_s: float
    last_due_s: float
    prefill: _Cost
    whole: _Cost


def most_attained(offered: Sequence[OfferedRequest], machine: Machine, workers: int) -> float:
    """Return the largest share of the requests that any scheduler can attain.

    The bound is the closer, the longer the load lasts: only the last requests of it find a machine that nobody else
    wants.
    """
    blocks = Counter(block for request in offered if request.follow_up is None for block in request.prefix)
    works = [work for request in offered for work in _bounded_requests(request, machine, blocks)]
    works.sort(key=lambda work: work.release_s)
    whole = [work.whole for work in works]
    release_s = np.array([work.release_s for work in works])
    first_s = np.array([work.first_due_s for work in works])
    last_s = np.array([work.last_due_s for work in works])
    prompts = Jobs(release_s, first_s, _charged_s([work.prefill for work in works], 0.0) / workers)
    by_time, *others = [Jobs(release_s, last_s, _charged_s(whole, part) / workers) for part in BY_MEMORY]
    kept = min(most_in_bursts(prompts, by_time), *map(most_on_grid, (prompts, by_time, *others)))
    return kept / len(works)


def _charged_s(costs: Sequence[_Cost], by_memory: float) -> Floats:
    return np.array([cost.work_s + (1 - by_memory) * cost.by_time_s + by_memory * cost.by_memory_s for cost in costs])


def _bounded_requests(first: OfferedRequest, machine: Machine, blocks: Mapping[int, int]) -> list[_BoundedRequest]:
    works = []
    request: OfferedRequest | None = first
    earliest_s = latest_s = first.at_s
    # Whoever shares the beginning of a prompt may have computed it; of a session, only the rounds before.
    shared = itertools.takewhile(lambda block: blocks[block] > 1, first.prefix if first.follow_up is None else ())
    computed = others = first.prefix_block_tokens * sum(1 for _ in shared)
    while request is not None:
        contract = request.contract
        final = request.follow_up is None and contract.session_final and contract.final_decode
        targets = [target.tpot_s for target in (contract.final_decode if final else contract.decode)]
        prompt, output = request.prompt_tokens, request.output_tokens
        ttft_s = contract.ttft_s(machine.idle_prefill_s(prompt))
        stage_one = min(request.first_stage_tokens if len(targets) > 1 else output - 1, output - 1)
        decode_s = stage_one * targets[0] + (output - 1 - stage_one) * targets[-1] if targets else np.inf
        first_due_s = latest_s + (np.inf if ttft_s is None else ttft_s)
        prefill = _prefill(machine, prompt - min(computed, prompt - 1), first_due_s - earliest_s)
        decodes = _decodes(machine, prompt, others, stage_one, targets[0] if targets else np.inf)
        decodes += _decodes(
            machine, prompt + stage_one, others, output - 1 - stage_one, targets[-1] if targets else np.inf
        )
        works.append(_BoundedRequest(earliest_s, first_due_s, first_due_s + decode_s, prefill, prefill + decodes))
        # A step for the prompt, and as few for its tokens as the longest drafts allow.
        steps = 1 + (output - 1) / (1 + machine.max_draft_tokens)
        earliest_s += steps * machine.truth.vector[0] + prefill.work_s + decodes.work_s + request.delay_s
        latest_s = first_due_s + decode_s + request.delay_s
        # Only what a follow-up's prefix says it shares may be found in a cache.
        computed = len(request.prefix) * request.prefix_block_tokens if request.follow_up is not None else 0
        request = request.follow_up
    return works


def _prefill(machine: Machine, new_tokens: int, span_s: float) -> _Cost:
    """Return the cost of a prompt, no step of which outlasts the `span_s` from its release until it is due."""
    c = machine.truth.vector[:TERMS]
    work_s = c[1] * new_tokens + c[2]
    return _Cost(work_s, work_s * c[0] / (span_s - c[0]) if span_s > c[0] else _NEVER_S)


def _decodes(machine: Machine, context: int, others: int, tokens: int, tpot_s: float) -> _Cost:
    """Return the cost of a decode stage.

    Args:
        context: tokens before the stage.
        others: tokens of that context whose KV cache other requests may share.
        tokens: output tokens of the stage.
    """
    if tokens == 0:
        return _Cost(0.0, 0.0)
    c = machine.truth.vector[:TERMS]
    alpha, drafts = machine.acceptance, machine.max_draft_tokens
    if drafts:
        # A step brings several tokens: it is the tokens that cost, once each, and the overhead of fewer, longer steps.
        accepted = (1 - alpha ** (drafts + 1)) / (1 - alpha)
        work_s, steps, length_s = c[1] * tokens, tokens / accepted, tpot_s * accepted
    else:
        work_s = (c[1] + c[2]) * tokens + c[3] * (context * tokens + tokens * (tokens - 1) / 2)
        steps, length_s = float(tokens), tpot_s
    if length_s <= c[0]:
        return _Cost(work_s, _NEVER_S, _NEVER_S)
    least_s = c[1] + (0.0 if drafts else c[2] + c[3] * context)
    held_tokens = max(0, context - others) + (tokens - 1) / 2
    return _Cost(work_s, steps * least_s * c[0] / (length_s - c[0]), steps * c[0] * held_tokens / machine.kv_tokens)
