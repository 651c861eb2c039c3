"""From the dataclasses of a problem to the arrays that the kernels work on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.slo.planner.kernels.compiled import Floats, Integers
from services.slo.planner.kernels.layout import (
    DECODE_COLUMNS,
    JOB_COLUMNS,
    PLACED_COLUMNS,
    RELEASE_COLUMNS,
    SCHEDULE_LOAD,
    SETTING_COLUMNS,
    SETTING_HEADROOM_REQUESTS,
    SETTING_PROMISED_JOBS,
    SETTING_WORK_LIMIT,
)
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.sampling import draw_all, transfer_times
from services.slo.planner.problem import Candidate, Problem, Topology, Worker

CHOICES: Final = 4
"""Prefill workers, and decode workers, that are looked at first for each candidate. A worker with its prefix cached
comes on top. Chosen: a few choices even out load nearly as well as all, at a cost that does not depend on the pool."""
REOFFERS: Final = 2
"""Number of times that a candidate without a place is offered to as many others. Chosen, with `CHOICES`."""
_SEEDS: Final = 0x7FFF_FFFF
"""Mask of the seeds of a round: they stay positive numbers that numba takes as they are."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The arrays of a round, and whom their indexes mean."""

    state: PlanState
    """Arrays that the kernels work on."""
    workers: tuple[Worker, ...]
    """Workers of the round, in the order of `state.workers`."""
    releases: Floats
    """Array (W, n, RELEASE_COLUMNS) of the running requests that will end, by time."""


def pack(problem: Problem, work_limit: float) -> Packed:
    """Sample workers for every candidate and lay out everything about them; the cost does not depend on the pool.

    Args:
        problem: has candidates, a worker that may prefill and one that may decode.
        work_limit: bound on the search, in prefills scheduled.

    Raises:
        ValueError: if the workers have different tiers, or a candidate asks for one that there is not.
    """
    topology, candidates = problem.topology, problem.candidates
    prefillers, decoders, cached = _sampled_options(problem)
    used = sorted({*prefillers.ravel().tolist(), *decoders.ravel().tolist()} - {-1})
    # The last entry is that of -1, which means none and stays.
    places = np.full(used[-1] + 2 if used else 1, -1, dtype=np.int64)
    places[used] = range(len(used))
    workers = tuple(problem.workers[index] for index in used)
    tiers = workers[0].profile.tiers
    if any(worker.profile.tiers != tiers for worker in workers):
        raise ValueError("all workers of a round are planned with the same tiers")
    for candidate in candidates:
        if not -1 <= candidate.tier < len(tiers.tpot_s):
            raise ValueError(f"{candidate.candidate_id}: there is no tier {candidate.tier}")
    state = _empty_state(workers, candidates, places[prefillers], cached, places[decoders])
    _fill_jobs(state, workers, candidates, problem.typical_arrival)
    state.settings[SETTING_HEADROOM_REQUESTS] = problem.headroom_requests
    state.settings[SETTING_WORK_LIMIT] = work_limit
    prompts = np.array([candidate.prompt_tokens for candidate in candidates], dtype=np.float64)
    link = topology.link
    transfer_times(prompts, link.latency_s, topology.kv_bytes_per_token / link.bytes_per_s, state.handover_s)
    if topology.links:
        _exceptional_links(state, topology, workers, prompts)
    _forbid_exports(state, workers)
    return Packed(state, workers, _releases(workers))


def _sampled_options(problem: Problem) -> tuple[Integers, Integers, Floats]:
    """Return (C, P) prefillers and (C, D) decoders of each candidate, and (C, P) its tokens cached on the prefillers.

    Workers are indexes of `problem.workers`; -1 for none.
    """
    topology, candidates = problem.topology, problem.candidates
    wanted = CHOICES * (1 + REOFFERS)
    cached_at_most = max(len(candidate.cached) for candidate in candidates)
    preferred = cached_at_most if max(len(topology.prefill), len(topology.decode)) > wanted else 0
    options = []
    for role, pool in enumerate((topology.prefill, topology.decode)):
        chosen = np.full((len(candidates), min(wanted, len(pool)) + preferred), -1, dtype=np.int64)
        fixed = np.zeros(len(candidates), dtype=np.int64)
        if preferred:
            _prefer(problem, pool, chosen, fixed)
        draw_all(len(pool), wanted, (problem.seed + role) & _SEEDS, chosen, fixed)
        options.append(np.array([*pool, -1], dtype=np.int64)[chosen])
    prefillers, decoders = options
    cached = np.zeros(prefillers.shape)
    if cached_at_most:
        for index, candidate in enumerate(candidates):
            for worker_id, tokens in candidate.cached:
                cached[index, prefillers[index] == topology.index.get(worker_id, -2)] = tokens
    return prefillers, decoders, cached


def _prefer(problem: Problem, pool: Sequence[int], chosen: Integers, fixed: Integers) -> None:
    """Put the workers that have a candidate's prefix in their cache first among its options.

    Args:
        pool: workers to choose from, indexes of `problem.workers`.
        chosen: (C, n), gets places in the pool.
        fixed: (C,), gets the number of them.
    """
    position = {worker: at for at, worker in enumerate(pool)}
    index_of = problem.topology.index
    for index, candidate in enumerate(problem.candidates):
        for worker_id in dict.fromkeys(worker_id for worker_id, _ in candidate.cached):
            at = position.get(index_of.get(worker_id, -1))
            if at is not None:
                chosen[index, fixed[index]] = at
                fixed[index] += 1


def _empty_state(
    workers: Sequence[Worker], candidates: Sequence[Candidate], prefillers: Integers, cached: Floats, decoders: Integers
) -> PlanState:
    """Return the arrays of a round with its workers and options, but without jobs, settings and transfer times."""
    tpot_s = workers[0].profile.tiers.tpots
    promised = sum(len(worker.promised) for worker in workers)
    longest = max(len(worker.promised) for worker in workers)
    rows = max(worker.profile.step_table.shape[0] for worker in workers)
    step_tables = np.zeros((len(workers), rows, workers[0].profile.step_table.shape[1]))
    for index, worker in enumerate(workers):
        table = worker.profile.step_table
        step_tables[index, : table.shape[0]] = table
    count, places, width = len(candidates), longest + len(candidates) + 1, SCHEDULE_LOAD + 2 * tpot_s.size
    return PlanState(
        workers=np.array([worker.row for worker in workers]),
        step_tables=step_tables,
        tpot_s=tpot_s,
        jobs=np.zeros((promised + count + 1, JOB_COLUMNS)),
        queue=np.empty((len(workers), places), dtype=np.int64),
        queued=np.zeros(len(workers), dtype=np.int64),
        prefillers=np.ascontiguousarray(prefillers),
        cached=cached,
        decoders=np.ascontiguousarray(decoders),
        handover_s=np.empty((count, prefillers.shape[1], decoders.shape[1])),
        placed=np.full((count, PLACED_COLUMNS), -1, dtype=np.int64),
        settings=np.zeros(SETTING_COLUMNS),
        spent=np.zeros(1),
        checkpoints=np.empty((len(workers), places, width)),
        checkpointed=np.full(len(workers), -1, dtype=np.int64),
        schedule=np.zeros(width),
        chosen_step=np.zeros(width),
        decode_cost=np.zeros(DECODE_COLUMNS),
    )


def _fill_jobs(
    state: PlanState, workers: Sequence[Worker], candidates: Sequence[Candidate], typical: Candidate | None
) -> None:
    """Fill in the promised prefills with their queues, the candidates, and the typical arrival if there is one."""
    at = 0
    for index, worker in enumerate(workers):
        size = len(worker.promised)
        if size:
            state.jobs[at : at + size] = worker.jobs
            state.queue[index, :size] = np.arange(at, at + size)
            state.queued[index] = size
            at += size
    state.settings[SETTING_PROMISED_JOBS] = at
    rows = (*candidates, typical) if typical is not None else candidates
    state.jobs[at : at + len(rows)] = [
        # In the order of the JOB columns; what depends on the prefill worker is filled in by `set_destination`.
        (
            candidate.deadline_s,
            candidate.deadline_s,
            0.0,
            0.0,
            -1.0,
            candidate.value * candidate.standing.priority,
            candidate.prompt_tokens,
            candidate.kv_tokens,
            candidate.tier,
        )
        for candidate in rows
    ]


def _exceptional_links(state: PlanState, topology: Topology, workers: Sequence[Worker], prompts: Floats) -> None:
    """Overwrite the transfer times of pairs of workers that have a link of their own.

    Args:
        prompts: (C,), prompt tokens of each candidate.
    """
    ids = [worker.worker_id for worker in workers]
    seconds = np.full((len(ids) + 1, len(ids) + 1, 2), math.nan)
    for (prefill_id, decode_id), link in topology.links.items():
        if prefill_id in ids and decode_id in ids:
            seconds[ids.index(prefill_id), ids.index(decode_id)] = (
                link.latency_s,
                topology.kv_bytes_per_token / link.bytes_per_s,
            )
    found = seconds[state.prefillers[:, :, None], state.decoders[:, None, :]]
    transfer_s = found[..., 0] + found[..., 1] * prompts[:, None, None]
    np.copyto(state.handover_s, transfer_s, where=~np.isnan(transfer_s))


def _forbid_exports(state: PlanState, workers: Sequence[Worker]) -> None:
    """Make a hand-over from a worker that decodes itself take for ever: it exports no KV cache to another one."""
    # The last entry is that of -1, which stands for no worker.
    decodes = np.array([*(worker.decodes for worker in workers), False])
    elsewhere = state.prefillers[:, :, None] != state.decoders[:, None, :]
    state.handover_s[decodes[state.prefillers][:, :, None] & elsewhere] = math.inf


def _releases(workers: Sequence[Worker]) -> Floats:
    """Return the array (W, n, RELEASE_COLUMNS) of requests that will end; each worker's last entry is unused."""
    longest = max(len(worker.releases) for worker in workers)
    rows = np.full((len(workers), longest + 1, RELEASE_COLUMNS), math.inf)
    for index, worker in enumerate(workers):
        if worker.releases:
            rows[index, : len(worker.releases)] = worker.release_rows
    return rows
