"""A router with and without machine code for its planner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

START = """
import asyncio
from router.planner_code import load_or_compile
from services.slo.planner import machine_code_is_kept
from services.slo.planner.kernels import compiled

async def start():
    compiling = await load_or_compile()
    print("interpreted" if compiled._interpreting.is_set() else "loaded", machine_code_is_kept())
    for task in compiling:
        await task
        print("interpreted" if compiled._interpreting.is_set() else "loaded", machine_code_is_kept())

asyncio.run(start())
"""


def started(program: list[str], cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with its own cache and without the half minute that numba takes."""
    own = {"NUMBA_CACHE_DIR": str(cache), "NUMBA_DISABLE_JIT": "1", **environment}
    return subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, check=False, env={**os.environ, **own}
    )


def test_without_machine_code_the_planner_is_interpreted_until_it_is_compiled(tmp_path: Path) -> None:
    first = started(["-c", START], tmp_path)
    assert first.stdout.splitlines() == ["interpreted False", "loaded True"], first.stderr
    assert started(["-c", START], tmp_path).stdout.splitlines() == ["loaded True"]


def test_an_installation_compiles_for_every_router(tmp_path: Path) -> None:
    assert started(["-m", "router.compile_planner"], tmp_path).returncode == 0
    assert started(["-c", START], tmp_path).stdout.splitlines() == ["loaded True"]


def test_a_router_whose_compiler_fails_compiles_itself(tmp_path: Path) -> None:
    program = START.replace(
        "async def start", "import router.planner_code as p; p.COMPILER = 'absent'\nasync def start"
    )
    done = started(["-c", program], tmp_path)
    assert done.stdout.splitlines() == ["interpreted False", "loaded True"], done.stderr
