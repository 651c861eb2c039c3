"""A replay that runs a worker step by step on what was promised, and says what was late.

It knows requests, tokens and due times, and composes each step from them as an engine would (the next due times,
whole tokens, one KV token more for each token made); of the planner it takes placements only. Step times are exactly
those of the bound.

With drafts, a step makes the expected number of tokens for each request: that is what a promise about expectations can
be held to.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from services.slo.planner.kernels.step_table import COUNTED
from services.slo.planner.outcome import Round
from services.slo.planner.problem import Problem, Worker
from services.slo.planner.worker_profile import WorkerProfile

EPSILON_S = 1e-6


def expected_tokens(alpha: float, drafts: int) -> float:
    """Return the tokens that a plan counts on from a step with this many draft tokens."""
    return 1 + COUNTED * ((1 - alpha ** (drafts + 1)) / (1 - alpha) - 1)


@dataclass
class Prefill:
    """A prompt that is being computed."""

    name: str
    deadline_s: float
    tokens: int
    context: int
    tier: int
    full_tokens: int


@dataclass
class Decode:
    """A request that decodes, with the time by which its next token is due."""

    name: str
    tier: int
    due_s: float
    context: float
    full_tokens: float
    ahead: float = 0.0


@dataclass
class Replay:
    """A worker that composes steps from due times."""

    profile: WorkerProfile
    now_s: float
    kv_tokens: float
    prefills: list[Prefill]
    decodes: list[Decode]
    seconds: float
    late: list[str] = field(default_factory=list)
    steps: int = 0
    peak_kv: float = 0.0

    def run(self) -> Replay:
        """Run for as long as is asked for, and until every prompt is computed."""
        end_s = self.now_s + self.seconds
        self.prefills.sort(key=lambda prefill: prefill.deadline_s)
        while (self.prefills or self.decodes) and (self.now_s < end_s or self.prefills) and self.steps < 20_000:
            self._step()
        return self

    def _step(self) -> None:
        self.steps += 1
        length_s, drafts = self._target()
        first_due_s = min((decode.due_s for decode in self.decodes), default=math.inf)
        must_end_s = min(self.now_s + length_s, max(first_due_s, self.now_s))
        served = self._served(must_end_s, length_s, drafts)
        tokens = sum(1 + drafts[decode.tier] for decode in served)
        requests, context = len(served), sum(decode.context for decode in served)
        draft_steps = max((drafts[decode.tier] for decode in served), default=0)
        pairs = 0.0
        done: list[Prefill] = []
        for prefill in self.prefills:
            fits = self._whole_tokens(prefill, tokens, requests, context, draft_steps, pairs, must_end_s - self.now_s)
            if fits <= 0:
                break
            tokens += fits
            requests += 1
            pairs += fits * (prefill.context + fits / 2)
            prefill.tokens -= fits
            prefill.context += fits
            if prefill.tokens:
                break
            done.append(prefill)
            must_end_s = min(must_end_s, max(prefill.deadline_s, self.now_s))
        if not tokens:
            # Decodes alone may be ahead; with nothing else to do the engine serves them all.
            served = list(self.decodes)
            tokens = sum(1 + drafts[decode.tier] for decode in served)
            requests, context = len(served), sum(decode.context for decode in served)
            draft_steps = max((drafts[decode.tier] for decode in served), default=0)
        self.now_s += self._duration(tokens, requests, context, draft_steps, pairs)
        self._emit(served, drafts)
        for prefill in done:
            self._finish(prefill)
        self.prefills = [prefill for prefill in self.prefills if prefill.tokens]
        self.peak_kv = max(self.peak_kv, sum(decode.context for decode in self.decodes))

    def _target(self) -> tuple[float, list[int]]:
        """Return the step length, and drafts of each tier, that leave prefills the most time, of every combination."""
        tiers = self.profile.tiers
        present = sorted({decode.tier for decode in self.decodes})
        counts = [sum(decode.tier == tier for decode in self.decodes) for tier in present]
        contexts = [sum(d.full_tokens for d in self.decodes if d.tier == tier) for tier in present]
        best, best_length, best_drafts = -math.inf, self.profile.max_step_s, [0] * len(tiers.tpot_s)
        if not present:
            return best_length, best_drafts
        bound = self.profile.bound
        for drafts in itertools.product(range(tiers.drafts + 1), repeat=len(present)):
            reach = [
                tiers.tpot_s[tier] * expected_tokens(tiers.alphas[tier], draft)
                for tier, draft in zip(present, drafts, strict=True)
            ]
            length = min(*reach, self.profile.max_step_s)
            cost = bound.overhead_s + max(drafts) * bound.per_draft_step_s
            tokens = 0.0
            for count, context, reached, draft in zip(counts, contexts, reach, drafts, strict=True):
                share = length / reached
                cost += share * count * ((1 + draft) * bound.per_token_s + bound.per_request_s)
                cost += share * context * bound.per_context_token_s
                tokens += share * count * (1 + draft)
            room = min(length - cost, (self.profile.max_step_tokens - tokens) * bound.per_token_s)
            gain = room / (cost + room)
            if gain > best + 1e-12:
                best, best_length = gain, cost + room
                best_drafts = [0] * len(tiers.tpot_s)
                for tier, draft in zip(present, drafts, strict=True):
                    best_drafts[tier] = draft
        return best_length, best_drafts

    def _served(self, must_end_s: float, length_s: float, drafts: list[int]) -> list[Decode]:
        """Return who would be late if the next step were as long; everybody while there is no prefill."""
        if not self.prefills:
            return list(self.decodes)
        room_s = must_end_s - self.now_s
        served: list[Decode] = []
        tokens, context, draft_steps = 0, 0.0, 0
        for decode in sorted(self.decodes, key=lambda decode: decode.due_s):
            if decode.due_s >= must_end_s + length_s - EPSILON_S:
                break
            tokens += 1 + drafts[decode.tier]
            context += decode.context
            draft_steps = max(draft_steps, drafts[decode.tier])
            urgent = decode.due_s < must_end_s + EPSILON_S
            if not urgent and self._duration(tokens, len(served) + 1, context, draft_steps, 0.0) > room_s:
                break
            served.append(decode)
        return served

    def _whole_tokens(
        self,
        prefill: Prefill,
        tokens: int,
        requests: int,
        context: float,
        draft_steps: int,
        pairs: float,
        room_s: float,
    ) -> int:
        low, high = 0, min(prefill.tokens, self.profile.max_step_tokens - tokens)
        while low < high:
            middle = (low + high + 1) // 2
            more = middle * (prefill.context + middle / 2)
            if self._duration(tokens + middle, requests + 1, context, draft_steps, pairs + more) <= room_s + EPSILON_S:
                low = middle
            else:
                high = middle - 1
        return low

    def _duration(self, tokens: int, requests: int, context: float, draft_steps: int, pairs: float) -> float:
        bound = self.profile.bound
        work = bound.per_token_s * tokens + bound.per_request_s * requests + bound.per_attention_pair_s * pairs
        compute = work + bound.per_context_token_s * context
        memory = bound.memory_s + bound.memory_per_work * work + bound.memory_per_context_token_s * context
        return bound.overhead_s + draft_steps * bound.per_draft_step_s + max(compute, memory)

    def _emit(self, served: list[Decode], drafts: list[int]) -> None:
        tiers = self.profile.tiers
        for decode in served:
            made = expected_tokens(tiers.alphas[decode.tier], drafts[decode.tier])
            if self.now_s > decode.due_s + EPSILON_S:
                self.late.append(f"{decode.name}: token due {decode.due_s:.4f}, made {self.now_s:.4f}")
                decode.due_s = self.now_s
            decode.due_s += made * tiers.tpot_s[decode.tier]
            decode.context = min(decode.full_tokens, decode.context + made)
        self.decodes = [decode for decode in self.decodes if decode.context < decode.full_tokens]

    def _finish(self, prefill: Prefill) -> None:
        if self.now_s > prefill.deadline_s + EPSILON_S:
            self.late.append(f"{prefill.name}: first token due {prefill.deadline_s:.4f}, made {self.now_s:.4f}")
        if prefill.tier >= 0 and prefill.full_tokens > prefill.context:
            due_s = self.now_s + self.profile.tiers.tpot_s[prefill.tier]
            self.decodes.append(Decode(prefill.name, prefill.tier, due_s, prefill.context, prefill.full_tokens))


def running_decodes(worker: Worker, arriving: list[tuple[str, int, int, int]], seed: int) -> list[Decode]:
    """Return requests that decode already, somewhere between two tokens, and others that arrive.

    Args:
        arriving: name, tier, prompt tokens and full length in tokens of those that come from other workers.
    """
    rng = np.random.default_rng(seed)
    tiers = worker.profile.tiers
    probe = Replay(worker.profile, 0.0, 0.0, [], [], 0.0)
    everyone: list[Decode] = []
    for tier, (count, context) in enumerate(zip(worker.running, worker.context_tokens, strict=True)):
        for index in range(count):
            full = context / count
            everyone.append(Decode(f"running {tier}.{index}", tier, 0.0, float(rng.uniform(0.3, 0.99)) * full, full))
    newly = [Decode(name, tier, 0.0, prompt, full) for name, tier, prompt, full in arriving]
    probe.decodes = everyone + newly
    length_s, _ = probe._target()
    for decode in probe.decodes:
        tpot_s = tiers.tpot_s[decode.tier]
        # At a step boundary an engine on schedule has nobody due before the end of the next step, unless steps are
        # longer than TPOT and the request has only just come.
        earliest_s = min(length_s, tpot_s) if decode in newly else length_s
        decode.due_s = worker.busy_s + float(rng.uniform(earliest_s, max(earliest_s, tpot_s)))
    return probe.decodes


def replay_round(problem: Problem, outcome: Round, seconds: float = 0.5) -> list[str]:
    """Return everything that is late, and every KV cache that overflows, when the round's promises are run."""
    candidates = {candidate.candidate_id: candidate for candidate in problem.candidates}
    wrong: list[str] = []
    for worker in problem.workers:
        prefills = _promised(worker)
        arriving = []
        for decision in outcome.decisions:
            if not decision.guaranteed:
                continue
            asked = candidates[decision.candidate_id]
            here, there = decision.prefill_worker_id, decision.decode_worker_id
            if here == worker.worker_id:
                tier = asked.tier if here == there else -1
                cached = dict(asked.cached).get(worker.worker_id, 0)
                tokens = max(1, asked.prompt_tokens - cached)
                prefills.append(
                    Prefill(
                        asked.candidate_id,
                        asked.deadline_s,
                        tokens,
                        asked.prompt_tokens - tokens,
                        tier,
                        asked.kv_tokens,
                    )
                )
            elif there == worker.worker_id and asked.tier >= 0:
                arriving.append((asked.candidate_id, asked.tier, asked.prompt_tokens, asked.kv_tokens))
        held = sum(worker.context_tokens)
        replay = Replay(
            worker.profile,
            worker.busy_s,
            worker.kv_tokens_free + held,
            prefills,
            running_decodes(worker, arriving, problem.seed),
            seconds,
        ).run()
        promised_kv = sum((prefill.full_tokens for prefill in _promised(worker) if prefill.tier >= 0), start=0)
        if replay.peak_kv > worker.kv_tokens_free + held + promised_kv:
            wrong.append(f"{worker.worker_id}: {replay.peak_kv:.0f} KV tokens used")
        wrong += [f"{worker.worker_id}: {late}" for late in replay.late]
    return wrong


def _promised(worker: Worker) -> list[Prefill]:
    """Return the prefills that a worker has promised."""
    return [
        Prefill(
            f"promised {index}",
            prefill.deadline_s,
            max(1, prefill.prompt_tokens - prefill.computed_tokens),
            prefill.computed_tokens,
            prefill.decode_tier,
            prefill.kv_tokens,
        )
        for index, prefill in enumerate(sorted(worker.promised, key=lambda prefill: prefill.deadline_s))
    ]
