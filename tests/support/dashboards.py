"""The queries of the Grafana dashboards, as Grafana would send them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"
FILES = sorted(DIRECTORY.glob("*.json"))
VARIABLES = {"$__rate_interval": "30s", "$__range": "5m", "$profile": ".*", "$worker": ".*"}


def dashboard(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def expressions(file: Path) -> Iterator[tuple[str, str]]:
    """The title of each panel and one of its queries, with Grafana's variables in place; those of variables too."""
    content = dashboard(file)
    for panel in content["panels"]:
        for target in panel["targets"]:
            yield panel["title"], filled(target["expr"])


def variable_queries(file: Path) -> Iterator[tuple[str, str]]:
    """Metric and label of each variable that is read from Prometheus."""
    for variable in dashboard(file)["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", variable["query"]["query"])
            assert found, variable["query"]
            yield found[1], found[2]


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression
