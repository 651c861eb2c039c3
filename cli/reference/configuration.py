"""The tables of all options, one for each section."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from cli.reference.page import table
from services.config.settings import ENVIRONMENT_PREFIX, Settings

COLUMNS = ("option", "values", "default", "meaning")


def option_tables() -> str:
    """Write a table for every section of the configuration, sections within sections after their own."""
    settings = Settings.model_construct()
    parts = [_section(name, field.annotation, field.description) for name, field in type(settings).model_fields.items()]
    return "\n".join(parts)


def _section(path: str, kind: Any, description: str | None) -> str:
    if get_origin(kind) is dict:
        kind, path = get_args(kind)[1], f"{path}.NAME"
    assert issubclass(kind, BaseModel)
    rows, nested = [], ""
    for name, field in kind.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None and field.default is not None and isinstance(field.default, BaseModel):
            nested += "\n" + _section(f"{path}.{name}", inner, field.description)
            continue
        rows.append((f"`{name}`", value_words(field.annotation), _default(field), field.description or ""))
        if inner is not None:
            nested += "\n" + _section(f"{path}.NAME.{name}".replace("NAME.NAME", "NAME"), inner, field.description)
    heading = f"## `[{path}]`\n\n{(kind.__doc__ or description or '').strip()}\n\n"
    own = f"In the environment: `{ENVIRONMENT_PREFIX}{path.upper().replace('.', '__')}__OPTION`.\n\n"
    return heading + (own + table(COLUMNS, rows) if rows else "") + nested


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "unset"
    if isinstance(value, Path | str):
        return f"`{value}`" if str(value) else "empty"
    if isinstance(value, tuple):
        return f"`{list(value)}`" if value else "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def _model_in(kind: Any) -> type[BaseModel] | None:
    """Return the model of a section, of a list of sections, or of a section that may be unset; None for an option."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    for inner in get_args(kind):
        if (found := _model_in(inner)) is not None:
            return found
    return None


def value_words(kind: Any) -> str:
    """Return what an option may be, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return value_words(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(value_words(argument) for argument in arguments if argument is not types.NoneType)
    if origin is tuple:
        return f"list of {value_words(arguments[0])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "table"
    return {bool: "true, false", int: "integer", float: "number", str: "text", Path: "path"}.get(kind, "")
