"""Traces as they are published: Azure's CSV and Mooncake's JSONL."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


class TraceError(Exception):
    """A trace file that cannot be read; the message names the line."""


@dataclass(frozen=True, slots=True)
class Traced:
    """One request of a trace."""

    at_s: float
    """Since the first."""
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()
    """Of each 512 tokens of the prompt, in Mooncake's traces."""


def read_trace(path: Path) -> list[Traced]:
    """Mooncake's format if the file is called `.jsonl`, else Azure's. Nothing is dropped, however long.

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
    """`TIMESTAMP, ContextTokens, GeneratedTokens`."""
    traced: list[Traced] = []
    began: datetime | None = None
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
                began = began or at
                at_s = (at - began).total_seconds()
            except (KeyError, TypeError, ValueError) as error:
                raise TraceError(f"{path}, line {number}: {error!r}") from error
            traced.append(Traced(at_s, max(1, prompt), max(1, output)))
    return traced


def _mooncake(path: Path) -> list[Traced]:
    """`timestamp` (milliseconds), `input_length`, `output_length`, `hash_ids`."""
    traced: list[Traced] = []
    with path.open() as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                traced.append(
                    Traced(
                        float(row["timestamp"]) * 1e-3,
                        max(1, int(row["input_length"])),
                        max(1, int(row["output_length"])),
                        tuple(int(block) for block in row.get("hash_ids", ())),
                    )
                )
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise TraceError(f"{path}, line {number}: {error!r}") from error
    return traced
