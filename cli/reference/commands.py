"""The description of every command of `slos-serve`, with its arguments and options."""

from __future__ import annotations

import inspect
from typing import Any

import typer.main
from typer.core import TyperArgument, TyperGroup, TyperOption

from cli.app import app
from cli.reference.page import table


def command_tables() -> str:
    """Write a section for every command, commands of groups included, in the order of `--help`."""
    return "\n".join(
        _command("slos-serve", name, command) for name, command in typer.main.get_group(app).commands.items()
    )


def _command(parent: str, name: str, command: Any) -> str:
    path = f"{parent} {name}"
    if isinstance(command, TyperGroup):
        inner = "\n".join(_command(path, key, value) for key, value in command.commands.items())
        return f"## `{path}`\n\n{_help(command)}\n\n{inner}"
    arguments = "".join(f" {_usage(parameter)}" for parameter in command.params if isinstance(parameter, TyperArgument))
    options = [
        (
            ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts)),
            _default(option),
            getattr(option, "help", "") or "",
        )
        for option in command.params
        if isinstance(option, TyperOption)
    ]
    level = "##" if parent == "slos-serve" else "###"
    listed = table(("option", "default", "meaning"), options) if options else ""
    return f"{level} `{path}{arguments}`\n\n{_help(command)}\n\n{listed}"


def _help(command: Any) -> str:
    return inspect.cleandoc(command.help or "")


def _usage(argument: TyperArgument) -> str:
    name = (argument.name or "").upper()
    return name if argument.required else f"[{name}]"


def _default(option: TyperOption) -> str:
    if option.required:
        return "required"
    if option.default in (None, "", (), []):
        return ""
    value = option.default
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`"
