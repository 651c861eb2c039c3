"""The error of a message that no conforming peer sends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

MAX_FIGURE = 1e15
"""Bound of every number of a report: counts and sums beyond it would lose digits, and nothing counts so far."""


class WireError(ValueError):
    """A message holds what no conforming peer sends; `field` is the path of the field at fault."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


def finite(field: str, value: float) -> float:
    """Return the value if it is finite.

    Raises:
        WireError: the value is NaN or infinite.
    """
    if not math.isfinite(value):
        raise WireError(field, f"must be finite; got {value}")
    return value


def figures(field: str, message: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return fields of a message that hold numbers, each finite, not negative and at most `MAX_FIGURE`.

    Args:
        field: path of the message.
        names: names of its fields.

    Raises:
        WireError: a number is out of range.
    """
    values = {name: getattr(message, name) for name in names}
    for name, value in values.items():
        if not 0 <= value <= MAX_FIGURE:  # NaN is not within any bounds
            raise WireError(f"{field}.{name}", f"must be finite and not negative; got {value}")
    return values
