"""Files of composed steps, from which any step of an engine can be composed again: one JSON object a line.

The first line is `{"format": 2}`; each further one is a step as `ComposedStep.to_plain` returns it, and `took_s`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from services.slo.composer.recorded_step import ComposedStep

FORMAT = 2
"""Number of the file format, which changes with the fields of a step."""


class RecordingError(ValueError):
    """A file is not a recording of steps; the message names the line."""


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A step of a recording."""

    step: ComposedStep
    took_s: float
    """Seconds that the engine took for the step."""


class StepRecorder:
    """Writes the steps of one engine to a file."""

    def __init__(self, path: Path) -> None:
        """Open the file, and overwrite what was there.

        Raises:
            OSError: the file cannot be written.
        """
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._write({"format": FORMAT})
        self._begun: dict[str, Any] | None = None

    def begin(self, step: ComposedStep) -> None:
        """Copy a step that begins; `end` writes it."""
        self._begun = step.to_plain()

    def end(self, took_s: float) -> None:
        """Write the step that began last, now that it has ended; write nothing if none has begun."""
        if self._begun is not None:
            self._write({**self._begun, "took_s": took_s})
            self._begun = None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        json.dump(line, self._file, allow_nan=False, separators=(",", ":"))
        self._file.write("\n")


def read_steps(path: Path) -> Iterator[RecordedStep]:
    """Yield the steps of a recording in the order in which they ran.

    Raises:
        RecordingError: the file is not a recording.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        number = 1
        try:
            if json.loads(file.readline())["format"] != FORMAT:
                raise ValueError(f"not of format {FORMAT}")
            for line in file:
                number += 1
                values = json.loads(line)
                yield RecordedStep(ComposedStep.from_plain(values), values["took_s"])
        except (ValueError, KeyError, TypeError) as error:
            raise RecordingError(f"{path}, line {number}: {error!r}") from error
