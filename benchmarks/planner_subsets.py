"""The best plan for one prefill worker, found by trying every subset of its candidates on the model in plain Python."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from benchmarks.planner_reference import Schedule, best_step, expected_tokens, step_with, work_s
from services.slo.planner.problem import Candidate, Problem, Worker


def _hands_over(
    problem: Problem, there: Worker, candidate: Candidate, counts: tuple[int, ...], contexts: tuple[int, ...]
) -> bool:
    """Return whether the second token can be in time on a worker that only decodes, in steps as short as can be."""
    tiers = there.profile.tiers
    lengths = {there.profile.max_step_s} | {
        tpot_s * expected_tokens(tiers.alphas[tier], drafts)
        for tier, tpot_s in enumerate(tiers.tpot_s)
        for drafts in range(tiers.drafts + 1)
    }
    steps = [step for length in lengths if (step := step_with(there.profile, counts, contexts, length)) is not None]
    shortest_s = min(min(step.longest_s, max(step.base_s, step.floor_s) + step.catch_up_s) for step in steps)
    transfer_s = problem.topology.link.latency_s
    return transfer_s + there.handover_steps * shortest_s <= tiers.tpot_s[candidate.tier]


def best_value(problem: Problem) -> float:
    """Return the largest value of any feasible subset, by depth-first search in order of due time.

    The first worker of the problem prefills, and the last decodes.
    """
    start = Schedule.of(problem.workers[0])
    if start is None or not problem.candidates:
        return 0.0
    promised = _promised(problem.workers[0], start)
    if promised is None:
        return 0.0
    search = _Search(problem, promised)
    decoder = problem.workers[-1]
    search.descend(0, start, 0.0, decoder.running, decoder.context_tokens, 0)
    return search.best


@dataclass(frozen=True)
class _Job:
    """One prefill: promised, or a candidate's."""

    due_s: float
    limit_s: float
    work_s: float
    tier: int
    kv_tokens: int
    candidate: Candidate | None = None


def _promised(worker: Worker, schedule: Schedule) -> list[_Job] | None:
    """Return the promised prefills, or None if decodes leave them no time; one that is late anyway has no limit."""
    jobs = []
    for prefill in sorted(worker.promised, key=lambda prefill: prefill.deadline_s):
        work = work_s(worker.profile, prefill.prompt_tokens, prefill.computed_tokens)
        job = _Job(prefill.deadline_s, prefill.deadline_s, work, prefill.decode_tier, prefill.kv_tokens)
        after = schedule.with_prefill(work, job.limit_s, job.tier, job.kv_tokens)
        if after is None:
            job = replace(job, limit_s=math.inf)
            after = schedule.with_prefill(work, math.inf, job.tier, job.kv_tokens)
        if after is None:
            return None
        schedule = after
        jobs.append(job)
    return jobs


class _Search:
    """Tries every subset of the candidates of a problem."""

    def __init__(self, problem: Problem, promised: list[_Job]) -> None:
        self.problem = problem
        self.decoder = problem.workers[-1]
        self.local = problem.workers[0] is self.decoder
        profile = problem.workers[0].profile
        jobs = promised + [
            _Job(
                candidate.deadline_s,
                candidate.deadline_s,
                work_s(profile, candidate.prompt_tokens),
                candidate.tier if self.local else -1,
                candidate.kv_tokens,
                candidate,
            )
            for candidate in problem.candidates
        ]
        self.jobs = sorted(jobs, key=lambda job: job.due_s)
        self.ahead = [0.0]
        for job in reversed(self.jobs):
            self.ahead.append(self.ahead[-1] + (job.candidate.value if job.candidate else 0.0))
        self.ahead.reverse()
        self.best = 0.0

    def descend(
        self, at: int, schedule: Schedule, value: float, counts: tuple[int, ...], contexts: tuple[int, ...], kv: int
    ) -> None:
        """Decide about every job from place `at` on, given what was taken before."""
        if value + self.ahead[at] <= self.best + 1e-9:
            return
        if at == len(self.jobs):
            if schedule.keeps_up:
                self.best = value
            return
        job = self.jobs[at]
        candidate = job.candidate
        after: Schedule | None = None
        if candidate is None:
            after = schedule.with_prefill(job.work_s, job.limit_s, job.tier, job.kv_tokens)
            if after is not None:
                self.descend(at + 1, after, value, counts, contexts, kv)
            return
        more, longer = counts, contexts
        if not self.local:
            more = tuple(count + (tier == candidate.tier) for tier, count in enumerate(counts))
            longer = tuple(c + candidate.kv_tokens * (tier == candidate.tier) for tier, c in enumerate(contexts))
        if kv + job.kv_tokens <= self.decoder.kv_tokens_free and self._decodes(candidate, more, longer):
            after = schedule.with_prefill(job.work_s, job.limit_s, job.tier, job.kv_tokens)
        if after is not None:
            self.descend(at + 1, after, value + candidate.value, more, longer, kv + job.kv_tokens)
        self.descend(at + 1, schedule, value, counts, contexts, kv)

    def _decodes(self, candidate: Candidate, counts: tuple[int, ...], contexts: tuple[int, ...]) -> bool:
        """Return whether a candidate can decode with so many others of each tier where it would go."""
        if self.local:
            return True
        return best_step(self.decoder.profile, counts, contexts) is not None and _hands_over(
            self.problem, self.decoder, candidate, counts, contexts
        )
