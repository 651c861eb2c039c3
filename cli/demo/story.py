"""The story of the demo: four acts in a row, each with a verdict on itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cli.demo.acts import comparison, promises, recovery, refusal
from cli.demo.scene import Scene
from cli.demo.stage import Stage
from cli.demo.streams import Served
from cli.status_details import explain
from slos_serve import SlosServeError

LONGEST_ACT_S = 600.0
"""Seconds after which an act is given up. The longest took 15 s on two cores that were busy with much else."""


@dataclass(frozen=True, slots=True)
class ActResult:
    """What came of one act."""

    title: str
    failure: str
    """Reason why it did not show its point; empty if it did."""
    took_s: float


@dataclass(slots=True)
class Story:
    """Plays the acts in order. A failed act does not end the story."""

    scene: Scene
    results: list[ActResult] = field(default_factory=list)
    killed_worker_id: str = ""
    """Worker that the last act killed and did not start again; empty if none."""
    _with_promises: list[Served] = field(default_factory=list)

    async def tell(self) -> None:
        """Play all acts; their results are in `results` afterwards."""
        for title, play in (
            (promises.TITLE, self._promises),
            (comparison.TITLE, self._comparison),
            (refusal.TITLE, self._refusal),
            (recovery.TITLE, self._recovery),
        ):
            self.results.append(await played(self.scene.stage, title, play))

    async def _promises(self) -> str:
        self._with_promises, failure = await promises.play(self.scene)
        return failure

    async def _comparison(self) -> str:
        if not self._with_promises:
            return "there is nothing to compare with: the first act broke off"
        return await comparison.play(self.scene, self._with_promises)

    async def _refusal(self) -> str:
        return await refusal.play(self.scene)

    async def _recovery(self) -> str:
        self.killed_worker_id, failure = await recovery.play(self.scene)
        return failure


async def played(
    stage: Stage, title: str, play: Callable[[], Awaitable[str]], longest_s: float = LONGEST_ACT_S
) -> ActResult:
    """Play one act, and say whether it showed its point.

    Args:
        play: returns why it did not; empty if it did.
        longest_s: seconds after which it is given up.
    """
    stage.title(title)
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(longest_s):
            failure = await play()
    except SlosServeError as error:
        failure = explain(error)
    except TimeoutError:
        failure = f"it took longer than {longest_s:.0f} s"
    took_s = time.monotonic() - began_s
    outcome, style = (f"FAILED: {failure}", "bold red") if failure else ("ok", "bold green")
    stage.say(f"act {title[0]}: {outcome} ({took_s:.1f} s)", style)
    return ActResult(title, failure, took_s)
