"""Which requests may draft without a change of their text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.engine.vllm.core.draft_worker import may_draft


def params(**changes: Any) -> Any:
    defaults: dict[str, Any] = {
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_p": 0.0,
        "logit_bias": None,
        "seed": None,
        "temperature": 1.0,
    }
    return SimpleNamespace(**defaults | changes)


@pytest.mark.parametrize(
    ("changes", "carried", "may"),
    [
        ({}, 0, True),
        ({}, 5, True),
        ({"temperature": 0.0, "seed": 7}, 0, True),
        ({"seed": 7}, 0, False),
        ({"seed": 0}, 0, False),
        ({"min_p": 0.1}, 0, False),
        ({"logit_bias": {5: 1.0}}, 0, False),
        ({"presence_penalty": 0.5}, 0, True),
        ({"presence_penalty": 0.5}, 3, False),
        ({"frequency_penalty": -0.5}, 3, False),
    ],
)
def test_options_that_are_not_applied_to_drafts_forbid_them(changes: dict[str, Any], carried: int, may: bool) -> None:
    assert may_draft(params(**changes), carried) is may


def test_a_request_without_options_drafts_nothing() -> None:
    assert not may_draft(None, 0)
