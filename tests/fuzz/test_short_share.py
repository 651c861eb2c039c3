"""A short share of the campaign: a few thousand inputs, of a seed that is always the same."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.record import FINDINGS, PROGRESS

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES = 3000


@pytest.mark.cluster
def test_whatever_is_sent_is_served_or_refused_by_a_typed_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--messages", str(MESSAGES), "--directory", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    findings = tmp_path / FINDINGS
    assert not findings.exists(), findings.read_text()[:20_000]
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-5000:]
    progress = json.loads((tmp_path / PROGRESS).read_text())
    assert progress["done"] == MESSAGES
    targets = {name: sum(counts.values()) for name, counts in progress["outcomes"].items()}
    assert sum(targets.values()) == MESSAGES
    assert len(targets) >= 20, "every target had its share"
