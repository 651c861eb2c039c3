"""Promised streams beside a hostile client: whatever it tries, they are complete and no worker is lost."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.neighbour.attacks import ATTACKS
from benchmarks.neighbour.bench import WRONG
from benchmarks.neighbour.streams import Wanted, follow

if TYPE_CHECKING:
    from tests.support.cluster import ClusterUnderTest

pytestmark = pytest.mark.cluster

SECONDS = 6.0
STREAMS = 4


def test_promised_streams_are_complete_whatever_a_hostile_client_tries(disturbed: ClusterUnderTest) -> None:
    disturbed.wait_empty()
    before = disturbed.state().counters
    command = [sys.executable, "-m", "benchmarks.neighbour.attacker"]
    with subprocess.Popen(
        [*command, disturbed.address, disturbed.gateway_address, str(SECONDS)], stdout=subprocess.PIPE, text=True
    ) as hostile:
        ended = asyncio.run(follow(disturbed.address, STREAMS, SECONDS, Wanted(30.0, 5.0, output_tokens=20)))
        said, _ = hostile.communicate()
    tried = json.loads(said)
    after = disturbed.state().counters
    assert hostile.returncode == 0
    assert [one for one in ended if one.error or one.tokens != 20] == []
    assert (after.workers_lost - before.workers_lost, sum(one.restarts for one in ended)) == (0, 0)
    assert set(tried) == set(ATTACKS)
    assert {name: counts for name, counts in tried.items() if not counts} == {}, "every attack was tried"
    failed = {name: counts for name, counts in tried.items() if set(counts) & set(WRONG)}
    assert failed == {}, "a hostile client gets refusals with a type, never a failure of the program"
    disturbed.wait_empty()
