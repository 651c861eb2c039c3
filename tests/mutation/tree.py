"""A copy of the repository in which files may be changed, and how tests are run there."""

from __future__ import annotations

import compileall
import contextlib
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STATE = ROOT / ".slos-serve" / "mutants"

NO_TEST_FAILED = 0
A_TEST_FAILED = 1
"""The exit status of pytest when tests ran and some failed."""


@contextlib.contextmanager
def copied_tree() -> Iterator[Path]:
    """Copy every file that git does not ignore, as it is now; yield the copy's directory and remove it at the end."""
    STATE.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    with tempfile.TemporaryDirectory(prefix="tree-", dir=STATE) as directory:
        copy = Path(directory)
        for file in listed.stdout.split("\0"):
            if file and (ROOT / file).is_file():
                (copy / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, copy / file)
        # By the hash of its source a compiled file is never taken for that of a changed one, however quick the change.
        compileall.compile_dir(copy, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        yield copy


def pytest_command(tests: Sequence[str]) -> list[str]:
    """Return the command that runs `tests` until the first fails."""
    return [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]


def environment(tree: Path, *, interpreted: bool) -> dict[str, str]:
    """Return the environment in which tests import the copy, with the same generated examples every time."""
    jit = {"NUMBA_DISABLE_JIT": "1"} if interpreted else {}
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1", **jit}


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a run of tests came to."""

    __test__ = False

    status: int
    output: str
    took_s: float

    @property
    def noticed(self) -> bool:
        """Tell whether a test failed.

        Raises:
            RuntimeError: pytest did not get as far as to tell.
        """
        if self.status not in {NO_TEST_FAILED, A_TEST_FAILED}:
            raise RuntimeError(f"pytest ended with {self.status}:\n{self.output[-3000:]}")
        return self.status == A_TEST_FAILED


def run_tests(tree: Path, tests: Sequence[str], *, interpreted: bool) -> TestRun:
    """Run tests in the copy until the first fails."""
    began_s = time.monotonic()
    done = subprocess.run(
        pytest_command(tests),
        cwd=tree,
        env=environment(tree, interpreted=interpreted),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return TestRun(done.returncode, done.stdout, time.monotonic() - began_s)


def run_unchanged(tree: Path, tests: Sequence[str], *, interpreted: bool) -> float:
    """Run tests before anything is changed and return how many seconds they take.

    Raises:
        RuntimeError: they fail, so that they would seem to notice every change.
    """
    unchanged = run_tests(tree, tests, interpreted=interpreted)
    if unchanged.noticed:
        raise RuntimeError(f"tests fail without a change:\n{unchanged.output[-3000:]}")
    return unchanged.took_s
