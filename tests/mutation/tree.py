"""A copy of the repository in which files may be changed, and how tests are run there."""

from __future__ import annotations

import compileall
import contextlib
import gc
import importlib
import math
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numba  # type: ignore[import-untyped]
import pytest

ROOT = Path(__file__).parents[2]
STATE = ROOT / ".slos-serve" / "mutants"

NO_TEST_FAILED = 0
TOO_LONG = 124
CRASHED = 125
_UNTOLD = frozenset({pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED})
_PYTEST = ("-x", "-q", "--no-header", "--assert=plain", "-p", "no:cacheprovider", "-W", "ignore")
_PRELOADED = (
    "_hypothesis_pytestplugin",
    "anyio.pytest_plugin",
    "fastapi",
    "google.rpc.error_details_pb2",
    "grpc.aio",
    "grpc_status.rpc_status",
    "httpx",
    "hypothesis.strategies",
    "opentelemetry.sdk.metrics.export",
    "opentelemetry.sdk.trace.export",
    "prometheus_client",
    "psutil",
    "pydantic_settings",
    "pytest_asyncio.plugin",
    "pytest_timeout",
    "redis.asyncio",
    "tokenizers",
    "uvicorn",
)


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


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a run of tests came to."""

    __test__ = False

    status: int
    """Exit status of pytest, or `TOO_LONG`."""
    output: str
    took_s: float

    @property
    def noticed(self) -> bool:
        """Tell whether a test failed, or did not end.

        Raises:
            RuntimeError: pytest did not get as far as to tell.
        """
        if self.status in _UNTOLD:
            raise RuntimeError(f"pytest ended with {self.status}:\n{self.output[-3000:]}")
        return self.status != NO_TEST_FAILED


def run_tests(tree: Path, tests: Sequence[str], *, interpreted: bool, timeout_s: float = math.inf) -> TestRun:
    """Run tests in the copy until the first fails.

    They run in a fork of this process, which has imported what others have written and nothing of the repository: most
    tests take less time than those imports.
    """
    for name in _PRELOADED:
        importlib.import_module(name)
    # What is here before the fork is no garbage of the tests, and takes long to look through.
    gc.freeze()
    with tempfile.TemporaryFile("w+") as output:
        began_s = time.monotonic()
        child = os.fork()
        if not child:
            _be_pytest(tree, tests, output.fileno(), interpreted=interpreted)
        status = _await(child, began_s + timeout_s)
        output.seek(0)
        return TestRun(status, output.read(), time.monotonic() - began_s)


def run_unchanged(tree: Path, tests: Sequence[str], *, interpreted: bool) -> float:
    """Run tests before anything is changed and return how many seconds they take.

    Raises:
        RuntimeError: they fail, so that they would seem to notice every change.
    """
    unchanged = run_tests(tree, tests, interpreted=interpreted)
    if unchanged.noticed:
        raise RuntimeError(f"tests fail without a change:\n{unchanged.output[-3000:]}")
    return unchanged.took_s


def _be_pytest(tree: Path, tests: Sequence[str], output: int, *, interpreted: bool) -> NoReturn:
    status = CRASHED
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        # Generated examples are the same every time with CI, as in the project's own gate.
        os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1", CI="1")
        sys.dont_write_bytecode = True
        numba.config.DISABLE_JIT = interpreted
        sys.path[:] = [str(tree), *(path for path in sys.path if Path(path).resolve() != ROOT)]
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        status = pytest.main([*_PYTEST, *tests])
    finally:
        sys.stdout.flush()
        os._exit(status)


def _await(child: int, deadline_s: float) -> int:
    """Return the exit status of a child; at the deadline, end it and everything that it has started."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline_s:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return TOO_LONG
        time.sleep(0.01)
