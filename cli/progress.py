"""The start of a cluster on a console: what is waited for, for how long, and how long it took the last time."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from deploy.local.start_times import Awaited

LIVE_REFRESHES_PER_S = 4


class StartProgress:
    """Shows one bar for each process that is waited for on a terminal; elsewhere, lines when they begin and are ready.

    `report` and `waiting` are what `LocalCluster` calls. Nothing stays on the terminal but lines.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._awaited: dict[str, Awaited] = {}

    def report(self, line: str) -> None:
        """Print a line about the start, above the bars."""
        self._console.print(f"  {line}", style="dim", highlight=False, markup=False)

    def waiting(self, awaited: Sequence[Awaited]) -> None:
        """Show what is waited for now; who was waited for before and is not in it any more is ready. Empty: the end."""
        now = {one.name: one for one in awaited}
        for name, ready in self._awaited.items():
            if name not in now:
                self._ready(ready)
        begun = [one for one in awaited if one.name not in self._awaited]
        if begun and self._console.is_terminal:
            self._add_bars(begun)
        elif begun:
            self.report(f"waiting for {', '.join(one.name + _usually(one) for one in begun)}")
        if self._bars is not None:
            for one in awaited:
                self._bars.update(self._tasks[one.name], completed=one.waited_s, times=_times(one))
        self._awaited = now
        if not awaited:
            self.stop()

    def stop(self) -> None:
        """Take the bars away; what has been printed stays."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        self._tasks.clear()
        self._awaited = {}

    def _add_bars(self, begun: Sequence[Awaited]) -> None:
        if self._bars is None:
            columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[times]}"))
            self._bars = Progress(
                *columns, console=self._console, transient=True, refresh_per_second=LIVE_REFRESHES_PER_S
            )
            self._bars.start()
        for one in begun:
            description = f"{one.name} {one.doing}"
            self._tasks[one.name] = self._bars.add_task(description, total=one.usual_s, times=_times(one))

    def _ready(self, one: Awaited) -> None:
        if self._bars is not None:
            self._bars.remove_task(self._tasks.pop(one.name))
        self.report(f"{one.name} ready after {one.waited_s:.1f} s{_usually(one)}")


def _times(one: Awaited) -> str:
    last = "" if one.usual_s is None else f", last time {one.usual_s:.0f} s"
    return f"{one.waited_s:.0f} s{last}"


def _usually(one: Awaited) -> str:
    return "" if one.usual_s is None else f" (last time {one.usual_s:.1f} s)"
