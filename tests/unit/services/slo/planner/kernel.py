"""Kernels of the planner that only compiled code calls, for tests to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba  # type: ignore[import-untyped]

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def callable_from_python(kernel: _Kernel) -> _Kernel:
    """Return the kernel compiled once more, with the wrapper that `compiled` saves; uncompiled if numba is disabled."""
    return cast(_Kernel, numba.njit(error_model="numpy")(getattr(kernel, "py_func", kernel)))
