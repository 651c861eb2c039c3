"""Reads request traces in the formats in which they are published: Azure's CSV and Mooncake's JSONL.

A row may say what latency its client wants, which no published trace does: columns `Profile`, `TtftMs` and `TpotMs` of
a CSV, keys `profile`, `ttft_ms` and `tpot_ms` of a JSONL.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


class TraceError(Exception):
    """A trace file cannot be read; the message names the line."""


@dataclass(frozen=True, slots=True)
class Traced:
    """One request of a trace."""

    at_s: float
    """Seconds since the first request of the file."""
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()
    """Identities of the prompt's blocks of 512 tokens, in Mooncake's traces."""
    profile: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None

    @property
    def asks_nothing(self) -> bool:
        """Whether the row says nothing about latency."""
        return not self.profile and self.ttft_s is None and self.tpot_s is None


def read_trace(path: Path) -> list[Traced]:
    """Read a trace, ordered by time: Mooncake's format if the file is called `.jsonl`, else Azure's.

    No request is dropped, however long.

    Raises:
        TraceError: the file cannot be read, is not in this format, or has no request.
    """
    try:
        traced = _mooncake(path) if path.suffix == ".jsonl" else _azure(path)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
    if not traced:
        raise TraceError(f"{path}: no requests")
    return sorted(traced, key=lambda request: request.at_s)


def _azure(path: Path) -> list[Traced]:
    """Read a CSV with the columns `TIMESTAMP`, `ContextTokens` and `GeneratedTokens`."""
    traced: list[Traced] = []
    began: datetime | None = None
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                prompt, output = _tokens(row["ContextTokens"]), _tokens(row["GeneratedTokens"])
                began = began or at
                at_s = (at - began).total_seconds()
                wanted = _wanted(row, "Profile", "TtftMs", "TpotMs")
            except (KeyError, TypeError, ValueError) as error:
                raise TraceError(f"{path}, line {number}: {error!r}") from error
            traced.append(Traced(at_s, prompt, output, (), *wanted))
    return traced


def _mooncake(path: Path) -> list[Traced]:
    """Read JSON lines with the keys `timestamp` (milliseconds), `input_length`, `output_length` and `hash_ids`."""
    traced: list[Traced] = []
    with path.open() as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                traced.append(
                    Traced(
                        _milliseconds(row["timestamp"]) * 1e-3,
                        _tokens(row["input_length"]),
                        _tokens(row["output_length"]),
                        tuple(int(block) for block in row.get("hash_ids", ())),
                        *_wanted(row, "profile", "ttft_ms", "tpot_ms"),
                    )
                )
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise TraceError(f"{path}, line {number}: {error!r}") from error
    return traced


def _milliseconds(value: Any) -> float:
    milliseconds = float(value)
    if not math.isfinite(milliseconds):
        raise ValueError(f"{value} is no time")
    return milliseconds


def _tokens(value: Any) -> int:
    """Return a number of tokens, at least 1: an empty prompt or answer is no request."""
    tokens = int(value)
    if tokens < 0:
        raise ValueError(f"{value} is no number of tokens")
    return max(1, tokens)


def _wanted(row: Mapping[str, Any], profile: str, ttft: str, tpot: str) -> tuple[str, float | None, float | None]:
    return (row.get(profile) or "").strip(), _seconds(row, ttft), _seconds(row, tpot)


def _seconds(row: Mapping[str, Any], name: str) -> float | None:
    if row.get(name) in (None, ""):
        return None
    milliseconds = _milliseconds(row[name])
    if milliseconds <= 0:
        raise ValueError(f"{name} must be positive; got {row[name]}")
    return milliseconds * 1e-3
