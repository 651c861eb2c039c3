"""An error of a call, in words."""

from __future__ import annotations

from slos_serve import SlosServeError


def explain(error: SlosServeError) -> str:
    """Code, message, and when to retry."""
    retry = "" if error.retry_after_s is None else f"; retry in {error.retry_after_s:.1f} s"
    path = f"{error.field}: " if error.field else ""
    return f"{error.code.name}: {path}{error.detail}{retry}"
