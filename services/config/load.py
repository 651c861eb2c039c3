"""Reads the configuration, and says clearly what is wrong with it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from services.config.settings import Settings


class ConfigurationError(Exception):
    """The configuration cannot be used; one line per fault."""


def load_settings(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """
    Args:
        path: TOML file; without one, defaults and the environment.
        overrides: what the command line sets, nested as in the file; it wins over both.

    Raises:
        ConfigurationError: no such file, not TOML, an unknown option or a value that makes no sense.
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
