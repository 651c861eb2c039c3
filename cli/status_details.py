"""Errors and scheduling figures of a cluster in words."""

from __future__ import annotations

from slos_serve import Scheduling, SlosServeError


def explain(error: SlosServeError) -> str:
    """Describe an error of a call: its code, its message, and when to retry."""
    retry = "" if error.retry_after_s is None else f"; retry in {error.retry_after_s:.1f} s"
    path = f"{error.field}: " if error.field else ""
    return f"{error.code.name}: {path}{error.detail}{retry}"


def scheduling(figures: Scheduling) -> str:
    """Describe how well an engine predicts its steps, and what its scheduler has done; zeros are left out."""
    counts = {
        "preemptions": figures.preempted,
        "held back": figures.held,
        "without a contract": figures.contracts_missing,
        "with a malformed contract": figures.contracts_malformed,
    }
    parts = [
        f"expects steps to within {figures.prediction_error:.1%}",
        f"{figures.bound_coverage:.1%} of them end in the time they were composed for",
        f"composed in {figures.compose_s * 1e6:.0f} us",
    ]
    parts += [f"{count} {what}" for what, count in counts.items() if count]
    if figures.drafted:
        parts.append(f"{figures.accepted} of {figures.drafted} draft tokens accepted")
    return ", ".join(parts)
