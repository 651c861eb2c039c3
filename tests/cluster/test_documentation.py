"""Programs in the documentation that are marked as runnable run as they are, against an emulated cluster."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slos_serve import Client
from tests.support.eventually import COMMAND_PATIENCE_S
from tests.support.markdown_pages import CodeBlock, code_blocks, pages

if TYPE_CHECKING:
    from tests.support.cluster import ClusterUnderTest
    from tests.support.http_door import HttpDoor

pytestmark = pytest.mark.cluster

PROGRAMS = [block for page in pages() for block in code_blocks(page) if block.runnable]
ROUTER, GATEWAY = "127.0.0.1:50051", "http://127.0.0.1:8000"
"""Addresses that the pages show: where `slos-serve up` listens unless told otherwise."""
MODEL = "SmolLM2-135M-Instruct"
"""Model that the pages name, which `slos-serve up` serves unless told otherwise."""


def test_only_languages_that_are_run_are_marked() -> None:
    assert {block.language for block in PROGRAMS} == {"python", "javascript"}


def command(language: str) -> list[str]:
    """Return the command that runs a program, which is its last argument."""
    if language == "python":
        return [sys.executable, "-c"]
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    return [node, "--input-type=module", "-e"]


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.where)
def test_a_program_of_the_documentation_runs(block: CodeBlock, emulated: ClusterUnderTest, door: HttpDoor) -> None:
    emulated.wait_ready(4)
    program = block.text.replace(ROUTER, emulated.address).replace(GATEWAY, door.url)
    with Client(emulated.address) as client:
        program = program.replace(MODEL, client.cluster_state().model)
    assert program != block.text, "a program that calls no cluster needs no mark"
    outcome = subprocess.run(
        [*command(block.language), program], capture_output=True, text=True, check=False, timeout=COMMAND_PATIENCE_S
    )
    if "429 contract_refused" in outcome.stderr:
        # On a busy machine a program that wants a promise or nothing may get nothing, which it reports as it should.
        return
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout
