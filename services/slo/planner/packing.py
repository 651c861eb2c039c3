"""From the dataclasses of a problem to the board that compiled code works on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.slo.planner.kernels.compiled import Floats, Integers
from services.slo.planner.kernels.layout import (
    JOB_COLUMNS,
    RELEASE_COLUMNS,
    STATE_COUNTS,
)
from services.slo.planner.kernels.plan_state import COMMITTED, NEWCOMERS, SETTINGS, WORK_LIMIT, PlanState
from services.slo.planner.kernels.sampling import draw_all, transfer_times
from services.slo.planner.problem import Candidate, Problem, Topology, Worker

CHOICES = 4
"""Prefill workers, and decode workers, that are looked at first for each candidate. A worker with its prefix cached
comes on top. Chosen: the power of a few choices, and one offer costs the same in a pool of any size."""
REOFFERS = 2
"""Number of times that a candidate without a place is offered to as many others. Chosen with `CHOICES`."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A board, and who its indexes are."""

    board: PlanState
    workers: tuple[Worker, ...]
    releases: Floats


def pack(problem: Problem, work_limit: float) -> Packed:
    """Sample workers for every candidate and lay out everything about them; cost does not depend on the pool."""
    topology, candidates = problem.topology, problem.candidates
    options, tokens = _sampled_options(problem)
    lanes, decoders = options
    used = sorted({*lanes.ravel().tolist(), *decoders.ravel().tolist()} - {-1})
    # The last entry is that of -1, which means none and stays.
    places = np.full(used[-1] + 2 if used else 1, -1, dtype=np.int64)
    places[used] = range(len(used))
    lanes_local, decoders_local = places[lanes], places[decoders]
    workers = tuple(problem.workers[index] for index in used)
    tiers = workers[0].profile.tiers
    if any(worker.profile.tiers != tiers for worker in workers):
        raise ValueError("all workers of a round are planned with the same tiers")
    for candidate in candidates:
        if not -1 <= candidate.tier < len(tiers.tpot_s):
            raise ValueError(f"{candidate.candidate_id}: there is no tier {candidate.tier}")
    board = _empty_board(workers, candidates, lanes_local, tokens, decoders_local)
    _fill_jobs(board, workers, candidates, problem.typical_arrival)
    board.settings[NEWCOMERS] = problem.headroom_requests
    prompts = np.array([candidate.prompt_tokens for candidate in candidates], dtype=np.float64)
    link = topology.link
    transfer_times(prompts, link.latency_s, topology.kv_bytes_per_token / link.bytes_per_s, board.handover_s)
    if topology.links:
        _exceptional_links(board, topology, workers, prompts)
    board.settings[WORK_LIMIT] = work_limit
    return Packed(board, workers, _releases(workers))


def _sampled_options(problem: Problem) -> tuple[tuple[Integers, Integers], Floats]:
    """Indexes into `problem.workers` of each candidate's lanes and decoders, and cached tokens on its lanes."""
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
        draw_all(len(pool), wanted, (problem.seed + role) & 0x7FFF_FFFF, chosen, fixed)
        options.append(np.array([*pool, -1], dtype=np.int64)[chosen])
    cached = np.zeros(options[0].shape)
    if cached_at_most:
        for index, candidate in enumerate(candidates):
            for worker_id, tokens in candidate.cached:
                cached[index, options[0][index] == topology.index.get(worker_id, -2)] = tokens
    return (options[0], options[1]), cached


def _prefer(problem: Problem, pool: Sequence[int], chosen: Integers, fixed: Integers) -> None:
    """Put the workers that have a candidate's prefix in their cache first among its options."""
    position = {worker: at for at, worker in enumerate(pool)}
    index_of = problem.topology.index
    for index, candidate in enumerate(problem.candidates):
        for worker_id in dict.fromkeys(worker_id for worker_id, _ in candidate.cached):
            at = position.get(index_of.get(worker_id, -1))
            if at is not None:
                chosen[index, fixed[index]] = at
                fixed[index] += 1


def _empty_board(
    workers: Sequence[Worker], candidates: Sequence[Candidate], lanes: Integers, cached: Floats, decoders: Integers
) -> PlanState:
    tiers = workers[0].profile.tiers.tpots
    promised = sum(len(worker.promised) for worker in workers)
    longest = max(len(worker.promised) for worker in workers)
    rows = max(worker.profile.step_table.shape[0] for worker in workers)
    tables = np.zeros((len(workers), rows, workers[0].profile.step_table.shape[1]))
    for index, worker in enumerate(workers):
        table = worker.profile.step_table
        tables[index, : table.shape[0]] = table
    count = len(candidates)
    return PlanState(
        workers=np.array([worker.row for worker in workers]),
        tables=tables,
        tpots=tiers,
        jobs=np.zeros((promised + count + 1, JOB_COLUMNS)),
        order=np.empty((len(workers), longest + count + 1), dtype=np.int64),
        queued=np.zeros(len(workers), dtype=np.int64),
        lanes=np.ascontiguousarray(lanes),
        cached=cached,
        decoders=np.ascontiguousarray(decoders),
        handover_s=np.empty((count, lanes.shape[1], decoders.shape[1])),
        placed=np.full((count, 2), -1, dtype=np.int64),
        settings=np.zeros(SETTINGS),
        spent=np.zeros(1),
        marks=np.empty((len(workers), longest + count + 1, STATE_COUNTS + 2 * tiers.size)),
        marked=np.full(len(workers), -1, dtype=np.int64),
        state=np.zeros(STATE_COUNTS + 2 * tiers.size),
        scratch=np.zeros(STATE_COUNTS + 2 * tiers.size),
        cost=np.zeros(2),
    )


def _fill_jobs(
    board: PlanState, workers: Sequence[Worker], candidates: Sequence[Candidate], newcomer: Candidate | None
) -> None:
    """The promised, the candidates, and one row for a newcomer, left empty without one."""
    at = 0
    for index, worker in enumerate(workers):
        size = len(worker.promised)
        if size:
            board.jobs[at : at + size] = worker.jobs
            board.order[index, :size] = np.arange(at, at + size)
            board.queued[index] = size
            at += size
    board.settings[COMMITTED] = at
    rows = (*candidates, newcomer) if newcomer is not None else candidates
    board.jobs[at : at + len(rows)] = [
        (
            candidate.deadline_s,
            candidate.deadline_s,
            0.0,
            0.0,
            -1.0,
            candidate.kv_tokens,
            candidate.value,
            candidate.prompt_tokens,
            candidate.kv_tokens,
            candidate.tier,
        )
        for candidate in rows
    ]


def _exceptional_links(board: PlanState, topology: Topology, workers: Sequence[Worker], prompts: Floats) -> None:
    ids = [worker.worker_id for worker in workers]
    seconds = np.full((len(ids) + 1, len(ids) + 1, 2), math.nan)
    for (prefill_id, decode_id), link in topology.links.items():
        if prefill_id in ids and decode_id in ids:
            seconds[ids.index(prefill_id), ids.index(decode_id)] = (
                link.latency_s,
                topology.kv_bytes_per_token / link.bytes_per_s,
            )
    found = seconds[board.lanes[:, :, None], board.decoders[:, None, :]]
    transfer_s = found[..., 0] + found[..., 1] * prompts[:, None, None]
    np.copyto(board.handover_s, transfer_s, where=~np.isnan(transfer_s))


def _releases(workers: Sequence[Worker]) -> Floats:
    longest = max(len(worker.releases) for worker in workers)
    rows = np.full((len(workers), longest + 1, RELEASE_COLUMNS), math.inf)
    for index, worker in enumerate(workers):
        if worker.releases:
            rows[index, : len(worker.releases)] = worker.release_rows
    return rows
