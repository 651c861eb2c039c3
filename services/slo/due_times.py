"""Due times of tokens: the rule that promises, step composition and scoring share.

An even reader takes one token per TPOT, the first of a stage one TPOT after the stage began. A token is due when that
reader wants it, so that the reader never runs dry (docs/explanation/planning-mathematics.md, section 1). Times are
seconds on the caller's clock, and infinite where nothing is due.
"""

from __future__ import annotations

LONGEST_GAP_TPOTS = 2.0
"""TPOTs that a stream should pause at most. A stream that ran ahead could pause longer and be in time; readers would
notice (chosen, not measured)."""


def next_due_s(from_s: float, tokens: int, tpot_s: float) -> float:
    """Return when the next token of a stage is due, `tokens` TPOTs after `from_s`.

    Due times do not move when tokens come early, so that any earlier point of the stage gives the same answer.

    Args:
        from_s: when the stage began, which is when the last token of the stage before came; or when an earlier token of
            the stage was due.
        tokens: tokens of the stage from there up to and including the next one.
        tpot_s: the stage's target.
    """
    return from_s + tokens * tpot_s


def wanted_s(came_s: float, tpot_s: float) -> float:
    """Return by when an even stream continues after a token that came at `came_s`, however early that was."""
    return came_s + LONGEST_GAP_TPOTS * tpot_s
