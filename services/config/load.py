"""Loading of the configuration, with errors that name the option at fault."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from services.config.settings import Settings


class ConfigurationError(Exception):
    """The configuration cannot be used; the message has one line per fault."""


def load_settings(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Load the configuration: what the command line sets, then the environment, then the file, then defaults.

    Args:
        path: TOML file; None: no file.
        overrides: options that the command line sets, nested as in the file.

    Raises:
        ConfigurationError: the file is missing or no TOML, an option is unknown, or a value is out of range.
    """
    if path is not None and not path.is_file():
        raise ConfigurationError(f"no configuration file {path}")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    try:
        return FromFile(**(overrides or {}))
    except ValidationError as error:
        faults = [
            ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, "))))
            for fault in error.errors()
        ]
        raise ConfigurationError("\n".join(faults)) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error
