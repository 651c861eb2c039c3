"""Times that the stub workers and the load generator share: a file in memory that both map.

Clocks are CLOCK_MONOTONIC, which is one for all processes of a machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

STEPS = 32768
"""Steps of a worker told apart; a token's id says in which it was made."""
FIRST_TOKEN_ID = 1000
"""Ids below are control tokens and single bytes."""
WORKERS = 64
REQUESTS = 1 << 20

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Clockwork:
    """When each step of each worker was sent, and when each request came to its prefill worker and left it."""

    steps: Floats
    arrived: Floats
    first_token: Floats

    @classmethod
    def open(cls, path: Path) -> Clockwork:
        size = WORKERS * STEPS + 2 * REQUESTS
        if not path.exists() or path.stat().st_size != 8 * size:
            with path.open("wb") as file:
                file.truncate(8 * size)
        shared = np.memmap(path, dtype=np.float64, mode="r+", shape=(size,))
        steps = shared[: WORKERS * STEPS].reshape(WORKERS, STEPS)
        return cls(steps, shared[WORKERS * STEPS : -REQUESTS], shared[-REQUESTS:])


def token_of(step: int) -> int:
    return FIRST_TOKEN_ID + step % STEPS


def step_of(token_id: int) -> int:
    return token_id - FIRST_TOKEN_ID


def request_number(request_id: str) -> int:
    """Return the number in an id that the load generator made."""
    return int(request_id.rpartition("-")[2]) % REQUESTS
