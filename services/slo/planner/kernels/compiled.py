"""The kernels in two forms: the Python that they are written in, and the machine code that numba makes of it.

Both take the same decisions to the last bit. Machine code takes a tenth of the time or less, and half a minute to make:
it is made the first time that an entry is called, and kept on disk in a cache that notices when any kernel changes.
Numba is imported only then, so that whoever imports the planner without planning does not pay for it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_KERNELS = Path(__file__).parent

_is_entry: dict[FunctionType, bool] = {}
"""Every kernel, and whether Python calls it."""
_machine_code: dict[FunctionType, Any] = {}
"""Numba's dispatcher of each kernel that has been asked for, compiled or not."""
_building = threading.RLock()
_interpreting = threading.Event()
_this_thread = threading.local()


def compiled(function: _Function) -> _Function:
    """Mark a function as a kernel that other kernels call. Division by zero gives infinity, as numpy's does.

    Raises:
        ValueError: if the function lies where a change of it would not make the cached machine code stale.
    """
    _is_entry[_kernel(function)] = False
    return function


def entry(function: _Function) -> _Function:
    """Mark a function as a kernel that Python calls: as machine code, without the interpreter lock, or interpreted.

    Raises:
        ValueError: if the function lies where a change of it would not make the cached machine code stale.
    """
    kernel = _kernel(function)
    _is_entry[kernel] = True

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if _interpreting.is_set() and not getattr(_this_thread, "in_machine_code", False):
            with np.errstate(all="ignore"):
                return function(*arguments)
        return (_machine_code.get(kernel) or _machine_code_of(kernel))(*arguments)

    return cast(_Function, call)


def interpret(on: bool) -> None:
    """Have Python interpret the entries from now on, or run them as machine code, which is the default."""
    if on:
        _interpreting.set()
    else:
        _interpreting.clear()


@contextmanager
def in_machine_code() -> Iterator[None]:
    """While entered, run the entries that this thread calls as machine code, although others interpret them."""
    _this_thread.in_machine_code = True
    try:
        yield
    finally:
        _this_thread.in_machine_code = False


def machine_code_directory() -> Path | None:
    """Return where machine code of exactly these sources is kept; None if there is no place that can be written."""
    return _chosen_cache()


def machine_code_is_kept() -> bool:
    """Return whether everything that a planner calls has been compiled before, on a processor like this one."""
    directory = _chosen_cache()
    return directory is not None and (directory / _completion_mark()).exists()


def note_that_machine_code_is_kept() -> None:
    """Remember that everything that a planner calls has been compiled."""
    directory = _chosen_cache()
    if directory is not None:
        with suppress(OSError):  # Then the next process compiles once more.
            (directory / _completion_mark()).touch()


def _kernel(function: Callable[..., Any]) -> FunctionType:
    package = __name__.rpartition(".")[0]
    if not function.__module__.startswith(f"{package}."):
        raise ValueError(f"{function.__module__}.{function.__qualname__} is compiled, so it belongs into {package}")
    assert isinstance(function, FunctionType)
    return function


def _machine_code_of(kernel: FunctionType) -> Any:
    """Return numba's dispatcher of a kernel, which calls the dispatchers of other kernels where it calls kernels."""
    with _building:
        if kernel not in _machine_code:
            own_globals = dict(kernel.__globals__)
            own = FunctionType(kernel.__code__, own_globals, kernel.__name__, kernel.__defaults__)
            own.__qualname__, own.__doc__ = kernel.__qualname__, kernel.__doc__
            # Before its callees, for kernels that call each other in a circle.
            _machine_code[kernel] = _dispatcher(own, python_calls=_is_entry[kernel])
            for name in kernel.__code__.co_names:
                called = getattr(own_globals.get(name), "__wrapped__", own_globals.get(name))
                if isinstance(called, FunctionType) and called in _is_entry:
                    own_globals[name] = _machine_code_of(called)
        return _machine_code[kernel]


def _dispatcher(function: FunctionType, *, python_calls: bool) -> Any:
    import numba  # type: ignore[import-untyped]

    if not python_calls:
        # Its machine code is kept within that of the entries that call it.
        return numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    directory = _chosen_cache()
    if directory is None:
        return numba.njit(error_model="numpy", nogil=True, no_cfunc_wrapper=True)(function)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(directory)
    try:
        return numba.njit(error_model="numpy", nogil=True, no_cfunc_wrapper=True, cache=True)(function)
    finally:
        numba.config.CACHE_DIR = before


def _sources() -> list[Path]:
    return sorted(_KERNELS.rglob("*.py"))


def _digest() -> str:
    """Return a digest of every source below this directory: whatever compiled code is made of."""
    digest = hashlib.blake2b(digest_size=8)
    for source in _sources():
        digest.update(str(source.relative_to(_KERNELS)).encode() + source.read_bytes())
    return digest.hexdigest()


def _completion_mark() -> str:
    """Return the name of the file that says that all is compiled here.

    It is made of what numba looks at before it uses its cache: the place and the time of each source, its own release,
    and the processor.
    """
    import llvmlite.binding  # type: ignore[import-untyped]
    import numba

    processor = (llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten())
    places = [(str(source), source.stat().st_mtime_ns) for source in _sources()]
    digest = hashlib.blake2b(repr((numba.__version__, processor, places)).encode(), digest_size=8)
    return f"complete-{digest.hexdigest()}"


@functools.cache
def _chosen_cache() -> Path | None:
    return _writable_cache()


def _writable_cache() -> Path | None:
    """Return a directory for machine code of exactly these sources, or None if no place for it can be written.

    numba keys its cache on the file of the function alone; a constant or callee imported from another module may change
    without it noticing, and the old machine code would run on.
    """
    name = f"machine-code-{_digest()}"
    stated = os.environ.get("NUMBA_CACHE_DIR")
    parents = [Path(stated)] if stated else []
    for parent in (*parents, _KERNELS / "__pycache__", *_user_caches()):
        directory = parent / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError:
            continue
    return None


def _user_caches() -> list[Path]:
    """Return the directory for caches of this user; none if the user has no home, as in some containers."""
    try:
        return [Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slos-serve"]
    except RuntimeError:
        return []
