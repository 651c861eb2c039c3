"""Act 2: the same burst on the same cluster, with promises switched off."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cli.demo.scene import Scene
from cli.demo.streams import Served
from cli.demo.tables import comparison_table, running_table
from cli.demo.tally import tally

TITLE = "2  The same sixteen prompts with promises switched off"


async def play(scene: Scene, with_promises: Sequence[Served]) -> str:
    """Send the burst without contracts, and measure it against the targets of act 1.

    Args:
        with_promises: the outcomes of act 1.

    Returns:
        The reason why the act did not show its point; empty if it did.
    """
    streams = scene.streams(promises=False)
    await scene.stage.during(
        asyncio.gather(*(stream.follow(scene.client) for stream in streams)), lambda: running_table(streams)
    )
    without = [stream.served() for stream in streams]
    scene.stage.show(comparison_table(with_promises, without))
    scene.stage.say(
        f"in time: {tally(with_promises).in_time} of {len(with_promises)} with promises, {tally(without).in_time} of "
        f"{len(without)} without: nobody knows who is in a hurry, and steps grow as long as throughput wants them"
    )
    return failure(with_promises, without)


def failure(with_promises: Sequence[Served], without: Sequence[Served]) -> str:
    """Return why these outcomes do not show that promises change something; empty if they do."""
    plain = tally(without)
    if plain.complete < plain.total:
        broken = next(request for request in without if request.achieved is None)
        return f"only {plain.complete} of {plain.total} streams are complete; {broken.name}: {broken.error}"
    in_time = tally(with_promises).in_time
    if plain.in_time >= in_time:
        return f"{plain.in_time} came in time without promises, {in_time} with them"
    return ""
