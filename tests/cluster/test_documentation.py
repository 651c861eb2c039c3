"""Programs in the documentation that are marked as runnable run as they are, against an emulated cluster."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.eventually import COMMAND_PATIENCE_S
from tests.support.markdown_pages import CodeBlock, code_blocks, pages

if TYPE_CHECKING:
    from tests.support.cluster import ClusterUnderTest
    from tests.support.http_door import HttpDoor

pytestmark = pytest.mark.cluster

PROGRAMS = [block for page in pages() for block in code_blocks(page) if block.runnable]
ROUTER, GATEWAY = "127.0.0.1:50051", "http://127.0.0.1:8000"
"""Addresses that the pages show: where `slos-serve up` listens unless told otherwise."""


def test_only_python_is_marked() -> None:
    assert PROGRAMS
    assert {block.language for block in PROGRAMS} == {"python"}


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.where)
def test_a_program_of_the_documentation_runs(block: CodeBlock, emulated: ClusterUnderTest, door: HttpDoor) -> None:
    emulated.wait_ready(4)
    program = block.text.replace(ROUTER, emulated.address).replace(GATEWAY, door.url)
    assert program != block.text, "a program that calls no cluster needs no mark"
    outcome = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=COMMAND_PATIENCE_S
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout
