"""For every test: no example is judged by its time, the suite runs in order of cost, so that what is quick to fail
fails first, and a run ends by saying what it skipped and why.
"""

from __future__ import annotations

import os
from collections import Counter

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was skipped: a skip that nobody sees is a test that nobody has."""
    skipped = Counter(
        (_reason(report), report.nodeid.partition("::")[0]) for report in terminalreporter.getreports("skipped")
    )
    if skipped:
        terminalreporter.write_sep("=", "skipped")
    for (reason, file), count in sorted(skipped.items()):
        terminalreporter.write_line(f"{count} in {file}: {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test was skipped; pytest reports the file, the line and the reason."""
    told = report.longrepr
    return str(told[2] if isinstance(told, (tuple, list)) else told).removeprefix("Skipped: ")
