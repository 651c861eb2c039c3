"""The predicted time of a step while it is filled, request by request."""

from __future__ import annotations

import math

from services.slo.performance import TERMS, PerformanceModel, StepRegime, StepShape

_TOKEN, _REQUEST, _CONTEXT, _PAIR, _DRAFT = 1, 2, 3, 4, 5


class StepMeter:
    """Predicts the time of a growing step from running sums, so that adding a request takes no look at the others.

    The prediction is the formula of `services.slo.performance.step_time_s`, and never below `PerformanceModel.step_s`
    of the same shape: in a step with prefills and decodes the larger of the mixed and the decode margin counts, so that
    adding a prefill never makes a step shorter.
    """

    __slots__ = (
        "_compute",
        "_compute_s",
        "_margin_decode",
        "_margin_mixed",
        "_margin_prefill",
        "_memory",
        "_memory_s",
        "decode_context_tokens",
        "decode_requests",
        "decode_tokens",
        "draft_steps",
        "prefill_pairs",
        "prefill_requests",
        "prefill_tokens",
    )

    def __init__(self, model: PerformanceModel) -> None:
        self._compute, self._memory = model.vector[:TERMS], model.vector[TERMS : 2 * TERMS]
        margins = model.margins
        self._margin_decode = margins[StepRegime.DECODE]
        self._margin_mixed = max(self._margin_decode, margins[StepRegime.MIXED])
        self._margin_prefill = margins[StepRegime.PREFILL]
        self.clear()

    def clear(self) -> None:
        """Empty the step."""
        self._compute_s, self._memory_s = self._compute[0], self._memory[0]
        self.decode_requests = self.decode_tokens = self.decode_context_tokens = self.draft_steps = 0
        self.prefill_requests = self.prefill_tokens = 0
        self.prefill_pairs = 0.0

    @property
    def tokens(self) -> int:
        """Number of tokens in the step."""
        return self.decode_tokens + self.prefill_tokens

    def seconds(self) -> float:
        """Return the predicted time of the step as it is; an empty one counts as a step of decodes without any."""
        if self.prefill_tokens:
            margin = self._margin_mixed if self.decode_tokens else self._margin_prefill
        else:
            margin = self._margin_decode
        return margin * max(self._compute_s, self._memory_s)

    def shape(self) -> StepShape:
        """Return the content of the step as the performance model describes it."""
        return StepShape(
            prefill_requests=self.prefill_requests,
            prefill_tokens=self.prefill_tokens,
            prefill_attention_pairs=self.prefill_pairs,
            decode_requests=self.decode_requests,
            decode_tokens=self.decode_tokens,
            decode_context_tokens=self.decode_context_tokens,
            draft_steps=self.draft_steps,
        )

    def add_decodes(self, requests: int, context_tokens: int) -> None:
        """Add decodes of one token each, whose contexts have `context_tokens` together."""
        self.decode_requests += requests
        self.decode_tokens += requests
        self.decode_context_tokens += context_tokens
        c, m = self._compute, self._memory
        self._compute_s += (c[_TOKEN] + c[_REQUEST]) * requests + c[_CONTEXT] * context_tokens
        self._memory_s += (m[_TOKEN] + m[_REQUEST]) * requests + m[_CONTEXT] * context_tokens

    def add_drafts(self, tokens: int, longest: int) -> None:
        """Add drafts to decodes that are in the step.

        Args:
            tokens: drafted tokens to verify, of all these decodes together.
            longest: tokens of the longest draft among them.
        """
        steps = max(0, longest - self.draft_steps)
        self.decode_tokens += tokens
        self.draft_steps += steps
        c, m = self._compute, self._memory
        self._compute_s += c[_TOKEN] * tokens + c[_DRAFT] * steps
        self._memory_s += m[_TOKEN] * tokens + m[_DRAFT] * steps

    def add_prefill(self, tokens: int, context_tokens: int) -> None:
        """Add a prefill chunk of `tokens`, before which `context_tokens` of the prompt are computed already."""
        pairs = tokens * (context_tokens + tokens / 2)
        self.prefill_requests += 1
        self.prefill_tokens += tokens
        self.prefill_pairs += pairs
        c, m = self._compute, self._memory
        self._compute_s += c[_TOKEN] * tokens + c[_REQUEST] + c[_PAIR] * pairs
        self._memory_s += m[_TOKEN] * tokens + m[_REQUEST] + m[_PAIR] * pairs

    def extend_prefill(self, tokens: int, context_tokens: int) -> None:
        """Lengthen a chunk that is in the step by `tokens`; `context_tokens` include the chunk as it was."""
        self.add_prefill(tokens, context_tokens)
        self.prefill_requests -= 1
        self._compute_s -= self._compute[_REQUEST]
        self._memory_s -= self._memory[_REQUEST]

    def with_decode_s(self, context_tokens: int, requests: int = 1) -> float:
        """Return the step's time with `requests` decodes more, whose contexts have `context_tokens` together."""
        c, m = self._compute, self._memory
        return (self._margin_mixed if self.prefill_tokens else self._margin_decode) * max(
            self._compute_s + (c[_TOKEN] + c[_REQUEST]) * requests + c[_CONTEXT] * context_tokens,
            self._memory_s + (m[_TOKEN] + m[_REQUEST]) * requests + m[_CONTEXT] * context_tokens,
        )

    def with_drafts_s(self, tokens: int, longest: int) -> float:
        """Return the step's time with drafts added; the arguments are those of `add_drafts`."""
        c, m = self._compute, self._memory
        steps = max(0, longest - self.draft_steps)
        return (self._margin_mixed if self.prefill_tokens else self._margin_decode) * max(
            self._compute_s + c[_TOKEN] * tokens + c[_DRAFT] * steps,
            self._memory_s + m[_TOKEN] * tokens + m[_DRAFT] * steps,
        )

    def with_prefill_s(self, tokens: int, context_tokens: int) -> float:
        """Return the step's time with one prefill chunk more; the arguments are those of `add_prefill`."""
        c, m = self._compute, self._memory
        pairs = tokens * (context_tokens + tokens / 2)
        return (self._margin_mixed if self.decode_tokens else self._margin_prefill) * max(
            self._compute_s + c[_TOKEN] * tokens + c[_REQUEST] + c[_PAIR] * pairs,
            self._memory_s + m[_TOKEN] * tokens + m[_REQUEST] + m[_PAIR] * pairs,
        )

    def shortest_step_s(self) -> float:
        """Return the predicted time of a step of one token, the shortest there is."""
        c, m = self._compute, self._memory
        one_s = max(c[0] + c[_TOKEN] + c[_REQUEST], m[0] + m[_TOKEN] + m[_REQUEST])
        return max(self._margin_decode, self._margin_prefill) * one_s

    def overhead_s(self) -> float:
        """Return the part of a prefill step's time that does not depend on its content."""
        return self._margin_prefill * max(self._compute[0], self._memory[0])

    def prefill_s(self, tokens: int, context_tokens: int) -> float:
        """Return the predicted time of a prefill without the overhead of its steps; see `add_prefill`."""
        c, m = self._compute, self._memory
        pairs = tokens * (context_tokens + tokens / 2)
        return max(self._margin_mixed, self._margin_prefill) * max(
            c[_TOKEN] * tokens + c[_REQUEST] + c[_PAIR] * pairs, m[_TOKEN] * tokens + m[_REQUEST] + m[_PAIR] * pairs
        )

    def best_case_fraction(self, configured: float) -> float:
        """Return the fraction of its predicted time that a prefill takes if all goes well.

        Predictions are bounds: their margin says by how much they exceed what is expected. The expected fraction counts
        where it is below the configured one.
        """
        return min(configured, 1.0 / max(1.0, self._margin_mixed, self._margin_prefill))

    def decodes_s(self, context_tokens: int, requests: int) -> float:
        """Return the predicted time of decodes without the overhead of their step; see `add_decodes`."""
        c, m = self._compute, self._memory
        return self._margin_mixed * max(
            (c[_TOKEN] + c[_REQUEST]) * requests + c[_CONTEXT] * context_tokens,
            (m[_TOKEN] + m[_REQUEST]) * requests + m[_CONTEXT] * context_tokens,
        )

    def chunk(self, pending_tokens: int, context_tokens: int, limit_s: float) -> int:
        """Return the longest chunk of a prefill with which the step keeps the limit; 0 if none does.

        Args:
            pending_tokens: tokens that the prefill has left.
            context_tokens: tokens of it that are computed already.
            limit_s: longest time of the step.
        """
        if limit_s == math.inf:
            return pending_tokens
        budget_s = limit_s / (self._margin_mixed if self.decode_tokens else self._margin_prefill)
        chunk = int(
            min(
                float(pending_tokens),
                _largest(self._compute, budget_s - self._compute_s, context_tokens),
                _largest(self._memory, budget_s - self._memory_s, context_tokens),
            )
        )
        while chunk > 0 and self.with_prefill_s(chunk, context_tokens) > limit_s:
            chunk -= 1
        return chunk

    def drafts(self, proposed_tokens: int, limit_s: float) -> int:
        """Return how many drafted tokens of one decode in the step can be verified within the limit."""
        tokens = proposed_tokens
        while tokens > 0 and self.with_drafts_s(tokens, tokens) > limit_s:
            tokens -= 1
        return tokens


def _largest(cost: tuple[float, ...], headroom_s: float, context_tokens: int) -> float:
    """Return the largest chunk of a prefill that costs no more than `headroom_s`.

    The chunk is the largest x with cost[TOKEN] x + cost[PAIR] (context x + x^2 / 2) + cost[REQUEST] <= headroom: the
    step time solved for the tokens (docs/explanation/planning-mathematics.md, section 5).
    """
    headroom_s -= cost[_REQUEST]
    if headroom_s <= 0:
        return 0.0
    slope, curve = cost[_TOKEN] + cost[_PAIR] * context_tokens, cost[_PAIR]
    root = math.sqrt(slope * slope + 2 * curve * headroom_s)
    # The usual formula loses its digits where the square is small against the slope; this form does not.
    return 2 * headroom_s / (slope + root) if slope + root > 0 else math.inf
