"""The programs in `examples/` run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.eventually import COMMAND_PATIENCE_S

if TYPE_CHECKING:
    from tests.support.cluster import ClusterUnderTest

pytestmark = pytest.mark.cluster

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = {
    "chat.py": ("What is the capital of France?", "ms]"),
    "coding_assistant.py": ("A function that adds.", "[quote: "),
    "agent_loop.py": ("How many people live in Oslo?", "[task "),
    "batch.py": ("", "16 of 16 done"),
}


def test_all_of_them_are_tried() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_an_example(emulated: ClusterUnderTest, name: str) -> None:
    emulated.wait_ready(4)
    question, said = SAID[name]
    command = [sys.executable, str(EXAMPLES / name), emulated.address, *([question] if question else [])]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_PATIENCE_S)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert said in outcome.stdout
