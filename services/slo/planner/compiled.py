"""numba's `njit`, with types and a cache that notices when any module of the planner changes."""

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


def _writable_cache() -> Path | None:
    """A directory for machine code of exactly these sources; None if no place for it can be written.

    numba keys its cache on the file of the function alone; a constant or callee imported from another module may change
    without it noticing, and the old machine code would run on.
    """
    package = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for source in sorted(package.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for parent in (package / "__pycache__", user_cache / "slos-serve"):
        directory = parent / f"machine-code-{digest.hexdigest()}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError:
            continue
    return None


_CACHE = _writable_cache()


def compiled(function: _Function) -> _Function:
    """Compile on first use, to be called from compiled code only.

    Division by zero gives infinity as numpy's does.
    """
    return cast(_Function, numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))


def entry(function: _Function) -> _Function:
    """Compile on first use, to be called from Python as well; without the interpreter lock.

    What it calls is cached within it.
    """
    if _CACHE is None:
        return cast(_Function, numba.njit(error_model="numpy", nogil=True, no_cfunc_wrapper=True)(function))
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_CACHE)
    try:
        return cast(_Function, numba.njit(error_model="numpy", nogil=True, no_cfunc_wrapper=True, cache=True)(function))
    finally:
        numba.config.CACHE_DIR = before
