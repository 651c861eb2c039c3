"""Errors and scheduling figures of a cluster in words."""

from __future__ import annotations

from services.config.environment import API_KEY_VARIABLE
from slos_serve import ClusterState, PermissionDeniedError, Scheduling, SlosServeError, UnauthenticatedError


def explain(error: SlosServeError) -> str:
    """Describe an error of a call: its code, its message, and when to retry."""
    retry = "" if error.retry_after_s is None else f"; retry in {error.retry_after_s:.1f} s"
    path = f"{error.field}: " if error.field else ""
    hint = f"; {API_KEY_VARIABLE} or --api-key-file say who asks" if isinstance(error, UnauthenticatedError) else ""
    return f"{error.code.name}: {path}{error.detail}{retry}{hint}"


def without_state(address: str, error: SlosServeError) -> str:
    """Describe why a router does not tell its state."""
    if isinstance(error, UnauthenticatedError | PermissionDeniedError):
        return f"{address}: {explain(error)}"
    return f"no router answers at {address}: {error.detail}"


def client_part(state: ClusterState) -> str:
    """Describe the part of a cluster's state that clients are told, and say that there is more for operators."""
    more = "the state of workers, queue and counters is for operators; the credential that was sent is no operator's"
    return "\n".join((f"model {state.model}  {'ready' if state.ready else 'not ready'}", *state.warnings, more))


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
