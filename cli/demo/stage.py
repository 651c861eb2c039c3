"""The stage of the demo: a terminal that moves, or lines of text for everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.live import Live

REFRESHES_PER_S = 8


@dataclass(frozen=True, slots=True)
class Stage:
    """Prints what the demo says. On a terminal streams are shown while they run; elsewhere only what came of them."""

    console: Console

    def title(self, text: str) -> None:
        """Print a heading."""
        self.console.print(f"\n{text}", style="bold", markup=False)

    def say(self, text: str, style: str = "") -> None:
        """Print one line as it is, without markup."""
        self.console.print(f"  {text}", style=style, markup=False, soft_wrap=not self.console.is_terminal)

    def show(self, picture: RenderableType) -> None:
        """Print a table."""
        self.console.print(picture)

    async def during(self, work: Awaitable[object], picture: Callable[[], RenderableType]) -> None:
        """Wait for work to be done, and show a picture of it meanwhile if this is a terminal.

        Raises:
            Exception: what the work raises.
        """
        task = asyncio.ensure_future(work)
        if not self.console.is_terminal:
            await task
            return
        with Live(picture(), console=self.console, auto_refresh=False, transient=True) as live:
            while not task.done():
                await asyncio.wait([task], timeout=1 / REFRESHES_PER_S)
                live.update(picture(), refresh=True)
        await task
