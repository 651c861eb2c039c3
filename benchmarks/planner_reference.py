"""The planner's model of a lane once more, in plain Python, and every subset of candidates tried on it.

Written from the model's description, not from the compiled code, so that a slip in either shows as a difference.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache

from services.slo.planner.kernels.step_table import COUNTED
from services.slo.planner.problem import Candidate, Problem, Worker
from services.slo.planner.worker_profile import WorkerProfile


def expected_tokens(alpha: float, drafts: int) -> float:
    """What is counted on."""
    return 1 + COUNTED * (sum(alpha**power for power in range(drafts + 1)) - 1)


@dataclass(frozen=True)
class Step:
    longest_s: float
    """What the decodes allow; it may be full before."""
    base_s: float
    room_s: float
    floor_s: float
    catch_up_s: float

    @property
    def full_s(self) -> float:
        return max(self.base_s + self.room_s, self.floor_s)


@lru_cache(maxsize=200_000)
def best_step(profile: WorkerProfile, counts: tuple[int, ...], contexts: tuple[int, ...]) -> Step | None:
    """The step length that leaves prefills the largest share of time, of all that some draft length allows."""
    tiers = profile.tiers
    every = range(tiers.drafts + 1)
    lengths = {profile.max_step_s}
    for drafts in itertools.product(every, repeat=len(tiers.tpot_s)):
        gains = [expected_tokens(alpha, draft) for alpha, draft in zip(tiers.alphas, drafts, strict=True)]
        reaches = [tpot_s * gain for tpot_s, gain in zip(tiers.tpot_s, gains, strict=True)]
        lengths |= {min(profile.max_step_s, length) for length in (min(reaches), *reaches)}
    best: Step | None = None
    for length in sorted(lengths):
        step = step_with(profile, counts, contexts, length)
        if step is not None and (best is None or step.room_s / step.full_s > best.room_s / best.full_s + 1e-15):
            best = step
    return best


def step_with(
    profile: WorkerProfile, counts: tuple[int, ...], contexts: tuple[int, ...], length_s: float
) -> Step | None:
    """A step of this length, each tier with the fewest drafts that keep its rate."""
    tiers, bound = profile.tiers, profile.bound
    serving, memory, tokens, longest = 0.0, 0.0, 0.0, 0
    shares: list[tuple[float, float]] = []
    for tier, count in enumerate(counts):
        if not count:
            continue
        enough = [
            draft
            for draft in range(tiers.drafts + 1)
            if tiers.tpot_s[tier] * expected_tokens(tiers.alphas[tier], draft) * (1 + 1e-9) >= length_s
        ]
        if not enough:
            return None
        draft = enough[0]
        share = min(1.0, length_s / (tiers.tpot_s[tier] * expected_tokens(tiers.alphas[tier], draft)))
        every = count * ((1 + draft) * bound.per_token_s + bound.per_request_s)
        every += contexts[tier] * bound.per_context_token_s
        serving += share * every
        memory += share * contexts[tier] * bound.memory_per_context_token_s
        tokens += share * count * (1 + draft)
        longest = max(longest, draft)
        shares.append((share, every + contexts[tier] * bound.memory_per_context_token_s))
    fixed = bound.overhead_s + longest * bound.per_draft_step_s
    idle, most = fixed + bound.per_request_s, profile.max_step_tokens - 1
    shortened = 1.0
    if length_s - idle - serving - bound.per_token_s > bound.per_token_s * (most - tokens):
        # The step length at which tokens run out, with each decode in as few steps as its rate then needs:
        # length = idle + serving * (length / length_s) + per_token * (most - tokens * (length / length_s)).
        full_s = (idle + bound.per_token_s * most) / (1 - (serving - bound.per_token_s * tokens) / length_s)
        shortened = min(1.0, full_s / length_s)
        room = bound.per_token_s * (most - tokens * shortened)
    else:
        room = length_s - idle - serving - bound.per_token_s
    base, floor = idle + serving * shortened, fixed + bound.memory_s + memory * shortened
    if bound.memory_per_work:
        floor += bound.memory_per_work * (bound.per_request_s + serving * shortened)
        room = min(room, (length_s - floor) / bound.memory_per_work)
        floor += bound.memory_per_work * max(0.0, room)
    if room < 0 or floor > length_s * (1 + 1e-9):
        return None
    full_s = max(base + room, floor)
    scale = min(1.0, (full_s + bound.per_token_s) / length_s)
    catch_up = bound.per_token_s + sum(every * (1 - share * scale) for share, every in shares)
    return Step(length_s, base, room, floor, catch_up)


@dataclass(frozen=True)
class Lane:
    """A schedule so far: the open step began at `start_s` and holds `used_s` of prefill."""

    worker: Worker
    step: Step
    start_s: float
    counts: tuple[int, ...]
    contexts: tuple[int, ...]
    used_s: float = 0.0
    tightest_s: float = math.inf
    joined: tuple[int, ...] = ()

    @property
    def end_s(self) -> float:
        return self.start_s + max(self.step.base_s + self.used_s, self.step.floor_s) if self.used_s else self.start_s

    @classmethod
    def of(cls, worker: Worker) -> Lane | None:
        tiers = worker.profile.tiers
        counts = worker.running or (0,) * len(tiers.tpot_s)
        contexts = worker.context_tokens or (0,) * len(tiers.tpot_s)
        step = best_step(worker.profile, counts, contexts)
        if step is None:
            return None
        start_s = worker.busy_s
        if any(counts):
            tightest = next(tpot for tpot, count in zip(tiers.tpot_s, counts, strict=True) if count)
            start_s += step.catch_up_s + max(0.0, step.base_s * (1 - tightest / step.full_s))
        return cls(worker, step, start_s, counts, contexts)

    def with_prefill(self, work_s: float, limit_s: float, tier: int, kv_tokens: int) -> Lane | None:
        step, start, used, tightest = self.step, self.start_s, self.used_s, self.tightest_s
        counts, contexts, joined = self.counts, self.contexts, self.joined
        shifted = used > 0
        left = min(step.room_s, tightest - start - step.base_s) - used
        if used and work_s <= left:
            used += work_s
        else:
            if used:
                taken = max(0.0, left)
                work_s -= taken
                start += max(step.base_s + used + taken, step.floor_s)
            if joined:
                found = best_step(self.worker.profile, counts, contexts)
                if found is None:
                    return None
                if found.longest_s != step.longest_s:
                    start += found.catch_up_s
                    start += max(0.0, found.base_s * (1 - step.longest_s / found.full_s))
                tightest_tpot = self.worker.profile.tiers.tpot_s[min(joined)]
                start += max(0.0, found.base_s * (1 - tightest_tpot / found.full_s))
                step, joined = found, ()
            if step.room_s <= 0:
                return None
            full = math.ceil(work_s / step.room_s) - 1
            shifted = shifted or full > 0
            start += full * step.full_s
            used, tightest = work_s - full * step.room_s, math.inf
        # Steps of an engine may begin elsewhere, so that a last few tokens need a step of their own.
        alone_s = max(0.0, step.floor_s - step.base_s) if shifted else 0.0
        if start + max(step.base_s + used, step.floor_s) + alone_s > limit_s + 1e-9:
            return None
        if tier >= 0:
            counts = tuple(count + (index == tier) for index, count in enumerate(counts))
            contexts = tuple(context + kv_tokens * (index == tier) for index, context in enumerate(contexts))
            joined = (*joined, tier)
        return Lane(self.worker, step, start, counts, contexts, used, min(tightest, limit_s), joined)

    @property
    def keeps_up(self) -> bool:
        return not self.joined or best_step(self.worker.profile, self.counts, self.contexts) is not None


def work_s(profile: WorkerProfile, prompt_tokens: int, computed_tokens: int = 0) -> float:
    new = max(1, prompt_tokens - computed_tokens)
    pairs = new * (prompt_tokens - new) + new * new / 2
    return profile.bound.per_token_s * new + profile.bound.per_request_s + profile.bound.per_attention_pair_s * pairs


def _hands_over(
    problem: Problem, there: Worker, candidate: Candidate, counts: tuple[int, ...], contexts: tuple[int, ...]
) -> bool:
    """Whether the second token can be in time; on a worker that only decodes, with steps as short as they can be."""
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
    """The largest value of any feasible subset, by depth-first search in order of due time. One lane only."""
    start = Lane.of(problem.workers[0])
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
    due_s: float
    limit_s: float
    work_s: float
    tier: int
    kv_tokens: int
    candidate: Candidate | None = None


def _promised(worker: Worker, lane: Lane) -> list[_Job] | None:
    """Promised prefills; one that is late without any candidate has no limit. None if decodes leave them no time."""
    jobs = []
    for prefill in sorted(worker.promised, key=lambda prefill: prefill.deadline_s):
        work = work_s(worker.profile, prefill.prompt_tokens, prefill.computed_tokens)
        job = _Job(prefill.deadline_s, prefill.deadline_s, work, prefill.decode_tier, prefill.kv_tokens)
        after = lane.with_prefill(work, job.limit_s, job.tier, job.kv_tokens)
        if after is None:
            job = replace(job, limit_s=math.inf)
            after = lane.with_prefill(work, math.inf, job.tier, job.kv_tokens)
        if after is None:
            return None
        lane = after
        jobs.append(job)
    return jobs


class _Search:
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
        self, at: int, lane: Lane, value: float, counts: tuple[int, ...], contexts: tuple[int, ...], kv: int
    ) -> None:
        if value + self.ahead[at] <= self.best + 1e-9:
            return
        if at == len(self.jobs):
            if lane.keeps_up:
                self.best = value
            return
        job = self.jobs[at]
        candidate = job.candidate
        after: Lane | None = None
        if candidate is None:
            after = lane.with_prefill(job.work_s, job.limit_s, job.tier, job.kv_tokens)
            if after is not None:
                self.descend(at + 1, after, value, counts, contexts, kv)
            return
        more, longer = counts, contexts
        if not self.local:
            more = tuple(count + (tier == candidate.tier) for tier, count in enumerate(counts))
            longer = tuple(c + candidate.kv_tokens * (tier == candidate.tier) for tier, c in enumerate(contexts))
        if kv + job.kv_tokens <= self.decoder.kv_tokens_free and self._decodes(candidate, more, longer):
            after = lane.with_prefill(job.work_s, job.limit_s, job.tier, job.kv_tokens)
        if after is not None:
            self.descend(at + 1, after, value + candidate.value, more, longer, kv + job.kv_tokens)
        self.descend(at + 1, lane, value, counts, contexts, kv)

    def _decodes(self, candidate: Candidate, counts: tuple[int, ...], contexts: tuple[int, ...]) -> bool:
        if self.local:
            return True
        return best_step(self.decoder.profile, counts, contexts) is not None and _hands_over(
            self.problem, self.decoder, candidate, counts, contexts
        )
