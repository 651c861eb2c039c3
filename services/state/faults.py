"""Faults of what is read from Redis, in words."""

from __future__ import annotations

from pydantic import ValidationError

from services.shown import clipped


def first_fault(error: ValidationError) -> str:
    """Return the first of the faults that a validation found: the place and what is wrong, never the value."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    return clipped(f"{place}: {fault['msg']}" if place else str(fault["msg"]), 200)
