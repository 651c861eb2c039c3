"""What is wrong with a message."""

from __future__ import annotations

import math


class WireError(ValueError):
    """A message that no conforming peer sends. `field` is its path in the message."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


def finite(field: str, value: float) -> float:
    """The value itself.

    Raises:
        WireError: NaN or infinite.
    """
    if not math.isfinite(value):
        raise WireError(field, f"must be finite; got {value}")
    return value
