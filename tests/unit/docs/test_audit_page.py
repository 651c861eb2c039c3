"""The page on the audit log lists what the code can write."""

from __future__ import annotations

import json
import re
from pathlib import Path

from services.audit import Event, EventKind, Outcome
from services.audit.rates import BURST_LINES, LINES_PER_S
from services.audit.stream import MAX_WAITING_LINES
from services.identity.principal import Principal

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "audit.md").read_text()


def test_every_kind_of_event_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| .* \|$", PAGE, re.MULTILINE)
    assert rows == [kind.value for kind in EventKind]


def test_every_field_of_a_line_is_explained_and_the_example_is_one() -> None:
    event = Event(EventKind.CANCEL, Outcome.REFUSED, "r", Principal("ann", "acme", frozenset()), "p", "d", "t")
    fields = json.loads(event.line("router", 1_800_000_000.0))
    explained = {
        name for names in re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+)`", names)
    }
    assert fields.keys() <= explained
    example = json.loads(next(line for line in PAGE.splitlines() if line.startswith('{"time"')))
    assert example.keys() <= fields.keys()


def test_the_bounds_are_those_of_the_code() -> None:
    assert f"{BURST_LINES:.0f} lines at once and then {LINES_PER_S:.0f} a second" in PAGE
    assert f"{MAX_WAITING_LINES:,} at most" in PAGE
