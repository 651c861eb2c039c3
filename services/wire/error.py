"""The error of a message that no conforming peer sends."""

from __future__ import annotations

import math


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
