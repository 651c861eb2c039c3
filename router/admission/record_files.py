"""Recordings of admission on disk: JSON lines in segments, the oldest of which give way to new ones.

A segment begins with a header: the options of the core, and for all but the first the state that the core was in, so
that each segment can be replayed without those before it.
"""

from __future__ import annotations

import base64
import json
import logging
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from router.admission.core_state import pickled_state, restored_core
from services.faults import first_fault
from services.slo.admission import AdmissionCore, AdmissionOptions
from services.slo.admission.recording import Event, RecordingCore, ReplayedRequest
from services.slo.admission.recording.asked import Decided
from services.slo.admission.recording.replay import ASKED
from services.slo.admission.recording.snapshots import RequestSnapshot

log = logging.getLogger(__name__)

FORMAT = 2
SEGMENTS = 8
"""Segments that a recording is kept in at most; each has an equal share of its size."""
_NAME = re.compile(r"admission-(\d{6})\.jsonl")
_EVENTS: TypeAdapter[Event] = TypeAdapter(Event, config=ConfigDict(ser_json_inf_nan="constants"))
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
"""Errors that a header or a state raises which is not as a router wrote it."""


class RecordError(Exception):
    """A recording that cannot be read; the message says where and why."""


class RecordFiles:
    """Writes the events of a core. A disk that fails ends the recording, never the serving."""

    def __init__(self, directory: Path, most_bytes: int) -> None:
        """Begin a recording; one that is there already is replaced.

        Args:
            most_bytes: size of the events of all segments together, at about which the oldest is removed.

        Raises:
            OSError: the directory cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for path in _segments(directory):
            path.unlink()
        self._directory = directory
        self._segment_bytes = max(1, most_bytes // SEGMENTS)
        self._core: RecordingCore | None = None
        self._file: IO[bytes] | None = None
        self._number = 0
        self._full_at_bytes = 0
        """Length of the file at which the next segment begins; the header does not count."""

    def core(self, options: AdmissionOptions) -> RecordingCore:
        """Return the core whose events are written from its first on."""
        self._core = RecordingCore(self._tell, options, names_changed=self._begin_from_state)
        try:
            self._begin(None)
        except OSError as error:
            log.error("nothing is recorded in %s: %s", self._directory, error)
        return self._core

    def close(self) -> None:
        """Write what is buffered, and no more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _tell(self, event: Event) -> None:
        self._carry_on(lambda file: self._write(file, event))

    def _begin_from_state(self) -> None:
        self._carry_on(lambda _: self._begin(self._state()))

    def _write(self, file: IO[bytes], event: Event) -> None:
        file.write(_EVENTS.dump_json(event) + b"\n")
        if isinstance(event, Decided):
            file.flush()
        # A question is told after it was answered: only then is the core between two events.
        if isinstance(event, ASKED) and file.tell() > self._full_at_bytes:
            self._begin(self._state())

    def _state(self) -> bytes:
        assert self._core is not None
        return pickled_state(self._core)

    def _carry_on(self, action: Callable[[IO[bytes]], None]) -> None:
        """Go on with the recording; an error ends it, and is logged."""
        if self._file is None:
            return
        try:
            action(self._file)
        except OSError as error:
            log.error("the recording in %s ends here: %s", self._directory, error)
            self._file = None
        except Exception:  # A defect in recording must not reach whoever is served.
            log.exception("the recording in %s ends here", self._directory)
            self._file = None

    def _begin(self, state: bytes | None) -> None:
        """Begin a segment, and remove the oldest if there are too many."""
        assert self._core is not None
        self.close()
        self._number += 1
        file = (self._directory / f"admission-{self._number:06d}.jsonl").open("wb")
        encoded = None if state is None else base64.b64encode(state).decode()
        header = _Header(FORMAT, self._core.options, encoded, dict(self._core.known))
        file.write(_HEADERS.dump_json(header) + b"\n")
        self._full_at_bytes = file.tell() + self._segment_bytes
        self._file = file
        for path in _segments(self._directory)[:-SEGMENTS]:
            path.unlink()


@dataclass(frozen=True, slots=True)
class _Header:
    """The first line of a segment."""

    __pydantic_config__: ClassVar = ConfigDict(ser_json_inf_nan="constants")

    format: int
    options: AdmissionOptions
    state: str | None
    """Pickled attributes of the core, in base64; None if the segment begins with a new core."""
    requests: dict[str, RequestSnapshot]
    """The admitted requests by id, as events before this segment told of them."""


_HEADERS: TypeAdapter[_Header] = TypeAdapter(_Header)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a recording, with the core in the state at which it begins."""

    path: Path
    core: AdmissionCore
    requests: dict[str, ReplayedRequest]

    def events(self) -> Iterator[Event]:
        """Yield its events; a last line that was not written to its end is left out.

        Raises:
            RecordError: a line is none that this version wrote, or the file is gone.
        """
        try:
            lines = self.path.open("rb")
        except OSError as error:
            raise RecordError(f"{self.path} cannot be read: {error}") from None
        with lines:
            next(lines, b"")
            for number, line in enumerate(lines, start=2):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield _EVENTS.validate_json(line)
                except ValidationError as error:
                    raise RecordError(f"{self.path}, line {number}: {first_fault(error)}") from None


def segments(directory: Path) -> Iterator[Segment]:
    """Yield the segments of a recording, the oldest first.

    Raises:
        RecordError: there is none, or one cannot be read.
    """
    paths = _segments(directory)
    if not paths:
        raise RecordError(f"{directory} holds no recording of admission")
    for path in paths:
        yield _opened(path)


def _opened(path: Path) -> Segment:
    try:
        with path.open("rb") as lines:
            line = next(lines, b"")
        written_as = json.loads(line)["format"]
        if written_as != FORMAT:
            raise RecordError(f"{path}: format {written_as}, this version reads {FORMAT}")
        header = _HEADERS.validate_json(line, strict=True)
        if header.state is None:
            return Segment(path, AdmissionCore(header.options), {})
        core, requests = restored_core(base64.b64decode(header.state), header.requests)
        return Segment(path, core, requests)
    except ValidationError as error:
        raise RecordError(f"{path}, line 1: {first_fault(error)}") from None
    except _DAMAGED as error:
        raise RecordError(f"{path} cannot be read: {type(error).__name__}: {error}") from None


def _segments(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("admission-*.jsonl") if _NAME.fullmatch(path.name))
