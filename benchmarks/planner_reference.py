"""The planner's model of a prefill worker once more, in plain Python.

It was written from the model's description, not from the compiled code, so that a slip in either shows as a difference.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

from services.slo.planner.kernels.step_table import COUNTED
from services.slo.planner.problem import Worker
from services.slo.planner.worker_profile import WorkerProfile


def expected_tokens(alpha: float, drafts: int) -> float:
    """Return the tokens that a plan counts on from a step with this many draft tokens."""
    return 1 + COUNTED * (sum(alpha**power for power in range(drafts + 1)) - 1)


@dataclass(frozen=True)
class Step:
    """A step that serves given decodes."""

    longest_s: float
    """Seconds that the decodes allow it to last; it may be full of tokens before."""
    base_s: float
    """Seconds that it costs before any prefill."""
    capacity_s: float
    """Seconds of prefill work that fit into it."""
    floor_s: float
    """Least seconds that it lasts."""
    catch_up_s: float
    """Seconds that decodes may need beyond their average share when such steps begin."""

    @property
    def full_s(self) -> float:
        """Seconds that it lasts when it is full of prefill work."""
        return max(self.base_s + self.capacity_s, self.floor_s)


@lru_cache(maxsize=200_000)
def best_step(profile: WorkerProfile, counts: tuple[int, ...], contexts: tuple[int, ...]) -> Step | None:
    """Return the step that leaves prefills the largest share of time, of all lengths that some draft length allows.

    None if no step serves so many decodes, with such contexts, of each tier.
    """
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
        if step is not None and (best is None or step.capacity_s / step.full_s > best.capacity_s / best.full_s + 1e-15):
            best = step
    return best


def step_with(
    profile: WorkerProfile, counts: tuple[int, ...], contexts: tuple[int, ...], length_s: float
) -> Step | None:
    """Return a step of this length, each tier with the fewest drafts that keep its rate; None if decodes do not fit."""
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
        capacity = bound.per_token_s * (most - tokens * shortened)
    else:
        capacity = length_s - idle - serving - bound.per_token_s
    base, floor = idle + serving * shortened, fixed + bound.memory_s + memory * shortened
    if bound.memory_per_work:
        floor += bound.memory_per_work * (bound.per_request_s + serving * shortened)
        capacity = min(capacity, (length_s - floor) / bound.memory_per_work)
        floor += bound.memory_per_work * max(0.0, capacity)
    if capacity < 0 or floor > length_s * (1 + 1e-9):
        return None
    full_s = max(base + capacity, floor)
    scale = min(1.0, (full_s + bound.per_token_s) / length_s)
    catch_up = bound.per_token_s + sum(every * (1 - share * scale) for share, every in shares)
    return Step(length_s, base, capacity, floor, catch_up)


@dataclass(frozen=True)
class Schedule:
    """A schedule so far: the open step began at `start_s` and holds `used_s` of prefill."""

    worker: Worker
    """Worker whose schedule it is."""
    step: Step
    """How it steps now."""
    start_s: float
    """Seconds from now at which the open step began."""
    counts: tuple[int, ...]
    """Number of decodes of each tier."""
    contexts: tuple[int, ...]
    """Context tokens of each tier."""
    used_s: float = 0.0
    """Seconds of prefill work in the open step."""
    tightest_s: float = math.inf
    """Seconds from now by which the open step must end."""
    joined: tuple[int, ...] = ()
    """Tiers of the prompts of the open step that will decode here."""

    @property
    def end_s(self) -> float:
        """Seconds from now at which the open step ends."""
        return self.start_s + max(self.step.base_s + self.used_s, self.step.floor_s) if self.used_s else self.start_s

    @classmethod
    def of(cls, worker: Worker) -> Schedule | None:
        """Return a worker's schedule before any prefill; None if it cannot keep up with its decodes."""
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

    def with_prefill(self, work_s: float, limit_s: float, tier: int, kv_tokens: int) -> Schedule | None:
        """Return the schedule with one prefill more, or None if that would end after its limit.

        Args:
            tier: where it decodes on this worker afterwards, with a context of `kv_tokens`; negative if it leaves.
        """
        step, start, used, tightest = self.step, self.start_s, self.used_s, self.tightest_s
        counts, contexts, joined = self.counts, self.contexts, self.joined
        shifted = used > 0
        left = min(step.capacity_s, tightest - start - step.base_s) - used
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
            if step.capacity_s <= 0:
                return None
            full = math.ceil(work_s / step.capacity_s) - 1
            shifted = shifted or full > 0
            start += full * step.full_s
            used, tightest = work_s - full * step.capacity_s, math.inf
        # Steps of an engine may begin elsewhere, so that a last few tokens need a step of their own.
        alone_s = max(0.0, step.floor_s - step.base_s) if shifted else 0.0
        if start + max(step.base_s + used, step.floor_s) + alone_s > limit_s + 1e-9:
            return None
        if tier >= 0:
            counts = tuple(count + (index == tier) for index, count in enumerate(counts))
            contexts = tuple(context + kv_tokens * (index == tier) for index, context in enumerate(contexts))
            joined = (*joined, tier)
        return Schedule(self.worker, step, start, counts, contexts, used, min(tightest, limit_s), joined)

    @property
    def keeps_up(self) -> bool:
        """Whether everyone who joined can be served for good."""
        return not self.joined or best_step(self.worker.profile, self.counts, self.contexts) is not None


def work_s(profile: WorkerProfile, prompt_tokens: int, computed_tokens: int = 0) -> float:
    """Return the seconds of computing that a prompt takes, step overheads excluded."""
    new = max(1, prompt_tokens - computed_tokens)
    pairs = new * (prompt_tokens - new) + new * new / 2
    return profile.bound.per_token_s * new + profile.bound.per_request_s + profile.bound.per_attention_pair_s * pairs
