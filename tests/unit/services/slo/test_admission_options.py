"""Options that make no sense are refused by name, and those at the edge of sense are taken."""

from __future__ import annotations

import math
from typing import Any

import pytest

from services.slo.admission import DEFAULT_OPTIONS, AdmissionOptions

POSITIVE = ("best_effort_patience_s", "coalesce_s", "planning_share", "refit_s")
NOT_NEGATIVE = ("max_hold_s", "headroom_requests", "submission_s", "reuse_worker_s")
PROBABILITIES = ("step_coverage", "handover_coverage")
AT_LEAST_ONE = ("sampled_workers", "workers_per_aged")
BAD: list[tuple[str, Any]] = [
    *((name, value) for name in POSITIVE for value in (0.0, -1.0, math.nan, math.inf)),
    *((name, value) for name in NOT_NEGATIVE for value in (-0.001, math.nan, math.inf)),
    *((name, value) for name in PROBABILITIES for value in (0.0, 1.0, -0.5, 1.5, math.nan)),
    *((name, 0) for name in AT_LEAST_ONE),
    ("draft_tokens", -1),
    ("draft_acceptance", -0.1),
    ("draft_acceptance", 1.0),
]
GOOD: list[tuple[str, Any]] = [
    *((name, 1e-9) for name in POSITIVE),
    *((name, 0.0) for name in NOT_NEGATIVE),
    *((name, 1) for name in AT_LEAST_ONE),
    ("draft_acceptance", 0.0),
    ("draft_tokens", 0),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_an_option_that_makes_no_sense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        AdmissionOptions(**{name: value})


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_an_option_at_the_edge_of_sense_is_taken(name: str, value: Any) -> None:
    assert getattr(AdmissionOptions(**{name: value}), name) == value


def test_defaults_are_those_that_the_documents_tell() -> None:
    """Whoever changes one changes what router and simulator do, and the documents with them."""
    options = DEFAULT_OPTIONS
    assert (options.best_effort_patience_s, options.coalesce_s, options.planning_share) == (30.0, 0.002, 0.1)
    assert (options.submission_s, options.refit_s, options.reuse_worker_s) == (0.004, 1.0, 0.05)
    assert (options.sampled_workers, options.workers_per_aged) == (8, 4)
    assert (options.draft_tokens, options.draft_acceptance, options.one_worker_in_turn) == (0, 0.0, False)
