"""Options in environment variables: `SLOS_SERVE_ROUTER__PORT=50052` sets `router.port`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.config.option_tree import Kind, find, suggestions
from services.config.settings import ENVIRONMENT_PREFIX, Settings

SEPARATOR = "__"
API_KEY_VARIABLE = f"{ENVIRONMENT_PREFIX}API_KEY"
"""Environment variable with the API key or token that commands send to routers; it is no option."""
UNSET = frozenset({"", "none"})
"""Values that unset an option which may be unset."""
KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")
"""Ends of the variables that Kubernetes puts into every container for a service that is called like an option."""


@dataclass(slots=True)
class FromEnvironment:
    """The options that an environment sets."""

    values: dict[str, Any] = field(default_factory=dict)
    """Options by section, nested as in a file."""
    variables: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Names of the variables by the paths of the options that they set."""
    faults: list[str] = field(default_factory=list)
    """One line for each variable that cannot be used."""


def variable(path: Sequence[str]) -> str:
    """Return the name of the variable that sets an option."""
    return ENVIRONMENT_PREFIX + SEPARATOR.join(path).upper()


def read_environment(environment: Mapping[str, str]) -> FromEnvironment:
    """Read the options that an environment sets; names of variables may be in capitals or not.

    Lists are written with commas or as JSON, tables as JSON. `none` unsets an option that may be unset.
    """
    read = FromEnvironment()
    named = {
        name: name.upper()
        for name in environment
        if name.upper().startswith(ENVIRONMENT_PREFIX) and name != API_KEY_VARIABLE
    }
    # A table comes before the single options in it, which win.
    for name, capitals in sorted(named.items(), key=lambda item: (item[1].count(SEPARATOR), item[1])):
        path = tuple(capitals.removeprefix(ENVIRONMENT_PREFIX).lower().split(SEPARATOR))
        kind = find(Settings, path)
        if kind is None:
            if not _by_kubernetes(capitals, environment[name]):
                read.faults.append(f"{name}: there is no such option{_meant(path)}")
            continue
        try:
            _put(read.values, path, _value(environment[name], kind))
        except ValueError as error:
            read.faults.append(f"{name}: {error}")
        else:
            read.variables[path] = name
    return read


def _by_kubernetes(capitals: str, value: str) -> bool:
    found = KUBERNETES.search(capitals)
    if found is None or SEPARATOR in capitals:
        return False
    # `SLOS_SERVE_ROUTER_PORT=50052` is a person's, who left an underscore out.
    return found[0] != "_PORT" or "://" in value


def _meant(path: Sequence[str]) -> str:
    meant = " or ".join(variable(known) for known in suggestions(Settings, path))
    return f"; did you mean {meant}?" if meant else "; `slos-serve config` lists all options"


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for step in path[:-1]:
        values = values.setdefault(step, {})
    values[path[-1]] = value


def _value(text: str, kind: Kind) -> Any:
    """Return the value that a variable sets; numbers and truth values stay text, which validation understands.

    Raises:
        ValueError: it is not written as such a value is; the message says how that is.
    """
    if kind.optional and text.strip().lower() in UNSET:
        return None
    if kind.section is not None or kind.entries is not None:
        return _json(text, dict, 'a table as JSON, such as {"option": "value"}, or one variable for each option')
    if kind.items is None:
        return text
    if kind.items.section is not None:
        return _json(text, list, 'a list of tables as JSON, such as [{"option": "value"}]')
    if text.lstrip().startswith("["):
        return _json(text, list, "a list, with commas or as JSON")
    return [item.strip() for item in text.split(",") if item.strip()]


def _json(text: str, wanted: type, described: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"takes {described}: {error}") from error
    if not isinstance(value, wanted):
        raise ValueError(f"takes {described}")
    return value
