"""Loading of the configuration, with errors that name the option at fault."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from services.config.environment import read_environment
from services.config.option_tree import Kind, find, suggestions
from services.config.settings import Settings


class ConfigurationError(Exception):
    """The configuration cannot be used; the message has one line per fault."""


def load_settings(
    path: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Load the configuration: what the command line sets, then the environment, then the file, then defaults.

    Args:
        path: TOML file; None: no file.
        overrides: options that the command line sets, nested as in the file.
        environment: environment variables; None: those of this process.

    Raises:
        ConfigurationError: the file cannot be read or is no TOML, an option is unknown, or a value is out of range.
    """
    written = {} if path is None else _read(path)
    read = read_environment(os.environ if environment is None else environment)
    if read.faults:
        raise ConfigurationError("\n".join(read.faults))
    try:
        return Settings.model_validate(_merged(_merged(written, read.values), overrides or {}))
    except ValidationError as error:
        faults = [_fault(fault, read.variables) for fault in error.errors()]
        raise ConfigurationError("\n".join(faults)) from error


def _read(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigurationError: the file cannot be read, or is no TOML.
    """
    try:
        # Editors of other systems put a byte-order mark in front, which TOML does not know.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"no configuration file {path}") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise ConfigurationError(f"{path} is not in UTF-8: line {line} has the byte 0x{byte:02x}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, nested; where both set an option, `above` wins.

    A section that `below` has as something else stays as it is, so that validation finds that fault.
    """
    merged = dict(below)
    for name, value in above.items():
        known = merged.get(name)
        if isinstance(value, Mapping) and known is not None:
            merged[name] = _merged(known, value) if isinstance(known, Mapping) else known
        else:
            merged[name] = value
    return merged


def _fault(fault: ErrorDetails, variables: Mapping[tuple[str, ...], str]) -> str:
    """Describe what is wrong with one option, and name the environment variable that set it, if one did."""
    path = fault["loc"]
    name = ".".join(map(str, path))
    if fault["type"] == "extra_forbidden":
        kind = "section" if isinstance(fault["input"], Mapping) else "option"
        return f"{name}: there is no such {kind}{_meant(path)}"
    steps = tuple(map(str, path))
    source = next((variables[steps[:end]] for end in range(len(steps), 0, -1) if steps[:end] in variables), "")
    message = _said(fault, find(Settings, path))
    return ": ".join(filter(None, (f"{name} ({source})" if source else name, message)))


def _said(fault: ErrorDetails, kind: Kind | None) -> str:
    if fault["type"] == "model_type" and kind is not None:
        return "a section is wanted here"
    return fault["msg"].removeprefix("Value error, ")


def _meant(path: Sequence[str | int]) -> str:
    meant = " or ".join(".".join(known) for known in suggestions(Settings, path))
    return f"; did you mean {meant}?" if meant else "; `slos-serve config` lists all options"
