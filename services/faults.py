"""Text from outside that is read strictly, and what is wrong with it in words."""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from services.shown import clipped

T = TypeVar("T")


def read_json(reader: TypeAdapter[T], text: str, failure: type[Exception]) -> T:
    """Return what a JSON text says.

    Args:
        reader: what the text must be.
        failure: kind of the error that is raised, with the first fault, if it is something else.
    """
    try:
        return reader.validate_json(text, strict=True)
    except ValidationError as error:
        raise failure(first_fault(error)) from error


def first_fault(error: ValidationError) -> str:
    """Return the first of the faults that a validation found: the place and what is wrong, never the value."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    return clipped(f"{place}: {fault['msg']}" if place else str(fault["msg"]), 200)
