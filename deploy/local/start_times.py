"""What a starting cluster waits for, and how long each process took the last time."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FILE = "start-times.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Awaited:
    """A process that has been started and does not serve yet."""

    name: str
    """Name of the process, such as `prefill-0`."""
    doing: str
    """What takes it so long, as words that follow its name."""
    waited_s: float
    """Seconds since it was started."""
    usual_s: float | None
    """Seconds that it took the last time; None if it was never started here."""


class StartTimes:
    """Seconds from start to readiness, the latest of each kind of process, in a file of the run directory.

    A kind is a role together with what decides how long it takes: a worker's engine and its model.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE
        self._seconds = _read(self._file)

    def usual_s(self, kind: str) -> float | None:
        """Return the seconds that a process of this kind took the last time; None if there was none."""
        return self._seconds.get(kind)

    def keep(self, took_s: Mapping[str, Iterable[float]]) -> None:
        """Write down how long the processes of each kind took; of several that started together, the slowest counts."""
        self._seconds |= {kind: round(max(seconds), 2) for kind, seconds in took_s.items()}
        try:
            unfinished = self._file.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(self._seconds, indent=2, sort_keys=True))
            unfinished.replace(self._file)
        except OSError as error:
            # It only tells people how long to wait the next time.
            _log.warning("start times cannot be kept in %s: %s", self._file, error)


@dataclass(frozen=True, slots=True)
class _Started:
    kind: str
    doing: str
    at_s: float


@dataclass(slots=True)
class StartWatch:
    """Knows which processes of a starting cluster are ready, and keeps how long they took once all are.

    Args:
        tell: called with everything that is waited for, whenever the cluster is looked at; with nothing at the end.
        clock: seconds on a clock that never runs backwards.
    """

    times: StartTimes
    tell: Callable[[Sequence[Awaited]], None]
    clock: Callable[[], float]
    _waiting: dict[str, _Started] = field(default_factory=dict)
    _took_s: dict[str, list[float]] = field(default_factory=dict)

    def begin(self, name: str, kind: str, doing: str) -> None:
        """Wait for a process that has just been started."""
        self._waiting[name] = _Started(kind, doing, self.clock())

    def look(self, ready: Collection[str]) -> bool:
        """Take note of the names of processes that are ready now. Returns whether all are."""
        now_s = self.clock()
        for name in [name for name in self._waiting if name in ready]:
            started = self._waiting.pop(name)
            self._took_s.setdefault(started.kind, []).append(now_s - started.at_s)
        self.tell(self.awaited())
        if not self._waiting:
            self.times.keep(self._took_s)
        return not self._waiting

    def awaited(self) -> list[Awaited]:
        """Return what is waited for, in the order in which it was started."""
        now_s = self.clock()
        return [
            Awaited(name, started.doing, now_s - started.at_s, self.times.usual_s(started.kind))
            for name, started in self._waiting.items()
        ]

    def give_up(self) -> None:
        """Wait for nothing any more, because the start failed."""
        self._waiting.clear()
        self.tell(())


def _read(file: Path) -> dict[str, float]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(kind): float(seconds) for kind, seconds in content.items() if isinstance(seconds, int | float)}
