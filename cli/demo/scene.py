"""The means that every act plays with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cli.demo.machine import Machine
from cli.demo.prompts import DemoPrompt
from cli.demo.stage import Stage
from cli.demo.streams import DemoStream
from cli.demo.targets import Targets
from cli.demo.workers import DemoWorkers
from slos_serve import AsyncClient

MAX_TOKENS = 64
"""Tokens that an answer has at most: two to three seconds of text on a CPU core with AVX-512."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A running cluster, a stage, and what was measured of the machine."""

    client: AsyncClient
    stage: Stage
    machine: Machine
    workers: DemoWorkers
    burst: Sequence[DemoPrompt]
    targets: Mapping[str, Targets]
    """Targets of each prompt of the burst, by its name."""
    max_hold_s: float
    """Seconds that the router lets a request wait for its verdict."""

    def streams(self, *, promises: bool) -> list[DemoStream]:
        """Return the requests of the burst, not yet sent.

        Args:
            promises: whether they ask for their targets as a contract; otherwise they ask for nothing.
        """
        return [
            DemoStream(
                name=prompt.name,
                prompt=prompt.text,
                profile=prompt.profile,
                targets=self.targets[prompt.name],
                contract=self.targets[prompt.name].contract(prompt.profile) if promises else None,
                max_tokens=MAX_TOKENS,
            )
            for prompt in self.burst
        ]
