"""For every test: no example is judged by its time, tests that share engines or a cluster run in one process, and a run
ends by saying what it skipped and why.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import PurePath
from typing import Any

import pytest
from hypothesis import settings

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("shared-machine", deadline=None)
# A gate answers for the change in hand, with the same examples every time; new ones are looked for everywhere else.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile("gate" if os.environ.get("CI") else "shared-machine")

SLOW_MARKERS = ("engine", "cluster", "gpu")
SHARED_CLUSTERS = ("emulated", "disturbed", "real")
"""Fixtures of clusters that live as long as the process that runs the tests."""
DISTURBED = ("test_console", "test_dashboards", "test_neighbour", "test_pictures")
OWN_CLUSTER = (
    "test_command_line",
    "test_demo",
    "test_local_prefill",
    "test_recording",
    "test_router_processes",
    "test_tls",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give each process whole groups of tests, so that what tests share is started once."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False  # The order is that of the collection.
    return Groups(config, log)


def _group(nodeid: str) -> str:
    """Return the name of the tests that share engines, a cluster, or a module's fixtures with this one."""
    file = nodeid.partition("::")[0]
    name = PurePath(file).stem
    if file.startswith("tests/engine/"):
        return "engine"
    if not file.startswith("tests/cluster/") or name in OWN_CLUSTER:
        return file
    return "real" if name.startswith("test_real_") else "disturbed" if name in DISTURBED else "emulated"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort tests by cost: what is quick to fail fails first.

    Processes beside each other begin with the longest groups, and end on small ones, so that none waits for another.
    """
    items.sort(key=_cost, reverse="PYTEST_XDIST_WORKER" in os.environ)
    for item in items:
        for name in SHARED_CLUSTERS:
            if name in getattr(item, "fixturenames", ()) and _group(item.nodeid) != name:
                raise pytest.UsageError(f"{item.nodeid} would start the cluster {name!r} once more: see {__file__}")


def _cost(item: pytest.Item) -> int:
    return max(
        (SLOW_MARKERS.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in SLOW_MARKERS), default=0
    )


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
