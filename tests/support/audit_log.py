"""The audit log of this process, or of others, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services import audit

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class AuditLog:
    path: Path

    def lines(self) -> list[dict[str, Any]]:
        assert audit.flush(30.0)
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def told(self) -> list[tuple[str, str, str]]:
        """Event, outcome and target of each line."""
        return [(line["event"], line["outcome"], line["target"]) for line in self.lines()]
