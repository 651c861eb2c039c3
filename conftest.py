"""For every test: no example is judged by its time, and the suite runs in order of cost, so that what is quick to fail
fails first.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("shared-machine", deadline=None)
# A gate answers for the change in hand, with the same examples every time; new ones are looked for everywhere else.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile("gate" if os.environ.get("CI") else "shared-machine")

SLOW_MARKERS = ("engine", "cluster", "gpu")


def _cost(item: pytest.Item) -> int:
    return max(
        (SLOW_MARKERS.index(marker.name) + 1 for marker in item.iter_markers() if marker.name in SLOW_MARKERS),
        default=0,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_cost)
