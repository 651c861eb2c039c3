"""Compilation with numba's `njit`, typed, with a machine-code cache that notices when any kernel changes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_Function = TypeVar("_Function", bound=Callable[..., Any])


_KERNELS = Path(__file__).parent


def _digest() -> str:
    """Return a digest of every source below this directory: whatever compiled code is made of."""
    digest = hashlib.blake2b(digest_size=8)
    for source in sorted(_KERNELS.rglob("*.py")):
        digest.update(str(source.relative_to(_KERNELS)).encode() + source.read_bytes())
    return digest.hexdigest()


def _writable_cache() -> Path | None:
    """Return a directory for machine code of exactly these sources, or None if no place for it can be written.

    numba keys its cache on the file of the function alone; a constant or callee imported from another module may change
    without it noticing, and the old machine code would run on.
    """
    name = f"machine-code-{_digest()}"
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for parent in (_KERNELS / "__pycache__", user_cache / "slos-serve"):
        directory = parent / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError:
            continue
    return None


_CACHE = _writable_cache()


def compiled(function: _Function) -> _Function:
    """Compile a function on first use; only compiled code may call it. Division by zero gives infinity as numpy's does.

    Raises:
        ValueError: if the function lies where a change of it would not make the cached machine code stale.
    """
    _check_place(function)
    return cast(_Function, numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))


def entry(function: _Function) -> _Function:
    """Compile a function on first use and keep its machine code; Python may call it too, without the interpreter lock.

    The compiled functions that it calls are cached within it.

    Raises:
        ValueError: if the function lies where a change of it would not make the cached machine code stale.
    """
    _check_place(function)
    if _CACHE is None:
        return cast(_Function, numba.njit(error_model="numpy", nogil=True, no_cfunc_wrapper=True)(function))
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_CACHE)
    try:
        return cast(_Function, numba.njit(error_model="numpy", nogil=True, no_cfunc_wrapper=True, cache=True)(function))
    finally:
        numba.config.CACHE_DIR = before


def _check_place(function: Callable[..., Any]) -> None:
    package = __name__.rpartition(".")[0]
    if not function.__module__.startswith(f"{package}."):
        raise ValueError(f"{function.__module__}.{function.__qualname__} is compiled, so it belongs into {package}")
