"""The command `config`, which prints every option with its documentation."""

from __future__ import annotations

import json
import textwrap
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from services.config.settings import ENVIRONMENT_PREFIX, Settings

WIDTH = 100
HEADER = f"""\
# Every option of slos-serve with its default. An environment variable overrides the file:
# {ENVIRONMENT_PREFIX}ROUTER__PORT=50052 sets router.port. There, lists have commas, tables are JSON, and `none` unsets
# an option that is shown here without a value.
"""


def config() -> None:
    """Print every option with its default and its documentation, as a TOML file."""
    typer.echo(configuration_toml(), nl=False)


def configuration_toml() -> str:
    """Write the default configuration with its documentation as TOML."""
    return HEADER + "".join(_section(name, getattr(Settings(), name)) for name in Settings.model_fields)


def _section(path: str, value: object) -> str:
    if path == "tenants":
        return "\n# [tenants.NAME]: what one tenant may use; `default` stands for all that are not named.\n"
    if isinstance(value, dict):
        return (
            f"\n# [{path}.NAME]: named contracts, besides summarizer, coder, chatbot, tool_use, reasoning.\n"
            f"# [{path}.patient]\n# prefill = {{ max_slowdown = 10 }}  # or {{ ttft_s = 2.0 }}\n"
            '# decode = [{ tpot_s = 0.2 }]\n# on_overload = "best_effort"  # or "refuse"\n'
        )
    assert isinstance(value, BaseModel)
    lines = ["", *_comment(type(value).__doc__ or ""), f"[{path}]"]
    nested = ""
    for name, field in type(value).model_fields.items():
        option = getattr(value, name)
        if isinstance(option, BaseModel):
            nested += _section(f"{path}.{name}", option)
            continue
        lines += _comment(field.description or "")
        lines.append(f"# {name} = " if option is None else f"{name} = {_literal(option)}")
    return "\n".join(lines) + "\n" + nested


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def _literal(value: Any) -> str:
    if isinstance(value, Path | Enum):
        return json.dumps(str(value))
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value)
