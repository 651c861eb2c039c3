"""A copy of the repository in which files may be changed, and how tests are run there."""

from __future__ import annotations

import compileall
import contextlib
import gc
import importlib
import os
import py_compile
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numba  # type: ignore[import-untyped]
import pytest

ROOT = Path(__file__).parents[2]
STATE = ROOT / ".slos-serve" / "mutants"

NO_TEST_FAILED = 0
CRASHED = 125
MOST_BYTES = 4 * 1024**3
"""Memory that tests may take. A change that makes a loop fill a list for ever would take all that the machine has; the
tests take a tenth of this."""
_UNTOLD = frozenset({pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED})
_BROKEN_IMPORT = "ImportError while loading conftest"
"""Said by pytest, with the status of a wrong command line, where changed code cannot even be imported."""
_PYTEST = ("-x", "-q", "--no-header", "--assert=plain", "-p", "no:cacheprovider", "-W", "ignore", "-o", "timeout=240")
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
    """Exit status of pytest, or minus the signal that ended it."""
    output: str
    cpu_s: float
    """Seconds that the tests kept a processor busy, processes that they started apart."""

    @property
    def noticed(self) -> bool:
        """Tell whether a test failed, or did not end.

        Raises:
            RuntimeError: pytest did not get as far as to tell.
        """
        if _BROKEN_IMPORT in self.output:
            return True
        if self.status in _UNTOLD:
            raise RuntimeError(f"pytest ended with {self.status}:\n{self.output[-3000:]}")
        return self.status != NO_TEST_FAILED


def run_tests(tree: Path, tests: Sequence[str], *, interpreted: bool, most_cpu_s: int | None = None) -> TestRun:
    """Run tests in the copy until the first fails.

    Args:
        most_cpu_s: seconds of a processor after which they are taken for an endless loop, and a change for noticed. The
            machine may be busy with others meanwhile; a test that waits for ever ends by pytest's own time limit.

    They run in a fork of this process, which has imported what others have written and nothing of the repository: most
    tests take less time than those imports.
    """
    for name in _PRELOADED:
        importlib.import_module(name)
    # What is here before the fork is no garbage of the tests, and takes long to look through.
    gc.freeze()
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if not child:
            _be_pytest(tree, tests, output.fileno(), interpreted=interpreted, most_cpu_s=most_cpu_s)
        _, status, used = os.wait4(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        output.seek(0)
        return TestRun(os.waitstatus_to_exitcode(status), output.read(), used.ru_utime + used.ru_stime)


def run_unchanged(tree: Path, tests: Sequence[str], *, interpreted: bool) -> float:
    """Run tests before anything is changed and return how many seconds of a processor they take.

    Raises:
        RuntimeError: they fail, so that they would seem to notice every change.
    """
    unchanged = run_tests(tree, tests, interpreted=interpreted)
    if unchanged.noticed:
        raise RuntimeError(f"tests fail without a change:\n{unchanged.output[-3000:]}")
    return unchanged.cpu_s


def _be_pytest(tree: Path, tests: Sequence[str], output: int, *, interpreted: bool, most_cpu_s: int | None) -> NoReturn:
    status = CRASHED
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        if most_cpu_s is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (most_cpu_s, most_cpu_s))
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
