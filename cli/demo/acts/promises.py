"""Act 1: sixteen prompts at once, each with a contract."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from cli.demo.scene import Scene
from cli.demo.streams import Served
from cli.demo.tables import head, promises_table, running_table
from cli.demo.tally import tally

TITLE = "1  Sixteen prompts at once, each with a contract"
LEAST_PROMISED_SHARE = 0.75
"""Share of the burst that must be promised: what the demo asks for is scaled so that all of it could be."""
MOST_MISSED = 1
"""Promises that may be missed: promises are made against bounds that hold for 99 % of the steps."""


async def play(scene: Scene) -> tuple[list[Served], str]:
    """Send the burst with contracts, and show what was asked, promised and came.

    Returns:
        The outcome of every request, and why the act did not show its point; empty if it did.
    """
    streams = scene.streams(promises=True)
    await scene.stage.during(
        asyncio.gather(*(stream.follow(scene.client) for stream in streams)), lambda: running_table(streams)
    )
    served = [stream.served() for stream in streams]
    scene.stage.show(promises_table(served))
    scene.stage.say(f"{streams[0].name} said: {head(streams[0].text)}", "dim")
    counts = tally(served)
    scene.stage.say(
        f"{counts.promised} of {counts.total} promised before their first token, {counts.kept} of these kept; "
        f"{counts.total - counts.promised} served without a promise{because(served)}"
    )
    return served, failure(served)


def failure(served: Sequence[Served]) -> str:
    """Return why these outcomes do not show that promises are made and kept; empty if they do."""
    counts = tally(served)
    if counts.complete < counts.total:
        broken = next(request for request in served if request.achieved is None)
        return f"only {counts.complete} of {counts.total} streams are complete; {broken.name}: {broken.error}"
    if counts.promised < LEAST_PROMISED_SHARE * counts.total:
        return f"only {counts.promised} of {counts.total} were promised"
    if counts.missed > MOST_MISSED:
        return f"{counts.missed} of {counts.promised} promises were missed"
    return ""


def because(served: Sequence[Served]) -> str:
    """Return, in brackets, how many requests each resource kept from a promise; empty if none did."""
    bindings = Counter(request.binding for request in served if request.binding)
    return f" ({', '.join(f'{binding} binds {count}' for binding, count in bindings.items())})" if bindings else ""
