"""The load generator on real engines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cluster.test_load import bench, records

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cluster import ClusterUnderTest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TRIES = 3


def test_prompts_of_a_mooncake_trace_share_their_blocks(real: ClusterUnderTest, tmp_path: Path) -> None:
    """vLLM's own prefix cache is the judge; the emulated engine has none."""
    trace = tmp_path / "trace.jsonl"
    row = {"input_length": 1100, "output_length": 2, "profile": "summarizer"}
    blocks = ([1, 2, 3], [1, 2, 4], [5, 2, 6])
    rows = [{**row, "timestamp": 4000 * index, "hash_ids": ids} for index, ids in enumerate(blocks)]
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    found: list[int] = []
    # New texts each time. On a busy machine one may be preempted or start again, and then finds blocks of its own.
    while len(found) < TRIES and 1024 not in found:
        outcome = bench("--target", f"grpc://{real.address}", "--trace", str(trace), "--json", str(tmp_path / "r.json"))
        assert outcome.exit_code == 0, outcome.output
        overall = records(tmp_path / "r.json")[0]["overall"]
        assert overall["complete"] == 3
        assert overall["prompt_tokens"] == 3300
        found.append(overall["cached_tokens"])
    assert 1024 in found, "two blocks of the second prompt, none of the third"
