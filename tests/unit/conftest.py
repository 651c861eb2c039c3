from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest


@pytest.fixture(scope="session")
def oracle() -> Iterator[ProcessPoolExecutor]:
    """A process of its own for OR-tools: in one process with vLLM's libraries it crashes."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor
