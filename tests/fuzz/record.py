"""The record of a campaign on disk: how far it is, how inputs were answered, and what was found."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.targets import Frames

PROGRESS = "progress.json"
FINDINGS = "findings.jsonl"


@dataclass(slots=True)
class Record:
    """How far a campaign is. Inputs end out of order, so that it goes on at the first that has not ended."""

    directory: Path
    seed: int
    begun: int = 0
    """Number of the next input that nobody has begun."""
    running: set[int] = field(default_factory=set)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """How often each target answered what."""
    found: int = 0
    seconds: float = 0.0
    memory: list[tuple[int, int]] = field(default_factory=list)
    """Resident MiB of the process, by number of inputs."""

    @classmethod
    def opened(cls, directory: Path, seed: int) -> Record:
        """Return the record in a directory, or a new one.

        Raises:
            ValueError: the directory holds a campaign with another seed.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / PROGRESS
        if not path.exists():
            return cls(directory, seed)
        held: dict[str, Any] = json.loads(path.read_text())
        if held["seed"] != seed:
            raise ValueError(f"{directory} holds a campaign with seed {held['seed']}")
        outcomes = {name: Counter(counts) for name, counts in held["outcomes"].items()}
        memory = [(number, mebibytes) for number, mebibytes in held["memory"]]
        return cls(directory, seed, held["done"], set(), outcomes, held["found"], held["seconds"], memory)

    @property
    def done(self) -> int:
        """Number of inputs that have ended, all of them before the first that has not."""
        return min(self.running, default=self.begun)

    def next(self) -> int:
        """Begin the next input and return its number."""
        number = self.begun
        self.begun += 1
        self.running.add(number)
        return number

    def ended(self, number: int, target: str, outcome: str) -> None:
        """Note how an input ended."""
        self.running.discard(number)
        self.outcomes.setdefault(target, Counter())[outcome] += 1

    def finding(self, number: int, target: str, what: str, frames: Frames) -> None:
        """Write down an input that did harm, with its bytes in hexadecimal digits."""
        self.found += 1
        line = {"input": number, "target": target, "what": what, "frames": [frame[:100_000].hex() for frame in frames]}
        with (self.directory / FINDINGS).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write(self) -> None:
        """Write down how far the campaign is."""
        held = {
            "seed": self.seed,
            "done": self.done,
            "found": self.found,
            "seconds": round(self.seconds, 1),
            "memory": self.memory,
            "outcomes": {name: dict(counts.most_common()) for name, counts in sorted(self.outcomes.items())},
        }
        path = self.directory / PROGRESS
        whole = path.with_suffix(".new")
        whole.write_text(json.dumps(held, indent=1))
        whole.replace(path)
