"""`replay`: feed a recording of admission to the admission core, and say what it says of a request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from router.admission.record_files import Segment

Directory = Annotated[
    Path, typer.Argument(help="The directory that `router.record` names, or the recording of one router in it.")
]
RequestId = Annotated[str, typer.Option("--request", help="Say what happened to this request instead, and why.")]


def replay(directory: Directory, request: RequestId = "") -> None:
    """Replay a recording of admission and show the first decision that differs from the recorded one.

    Exits with 0 if all decisions are as recorded, with 1 if one differs, with 2 if there is nothing to read.
    """
    from router.admission.record_files import RecordError, segments

    try:
        if request:
            for line in recorded_lines(directory, request):
                typer.echo(line)
            return
        differ = [_replay(one, list(segments(one))) for one in _recordings(directory)]
    except RecordError as error:
        typer.echo(f"replay: {error}", err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(1 if any(differ) else 0)


def _recordings(directory: Path) -> list[Path]:
    """Return the directory, or those in it if it is the one that `router.record` names."""
    below = sorted(path.parent for path in directory.glob("*/admission-*.jsonl"))
    return list(dict.fromkeys(below)) or [directory]


def _replay(directory: Path, found: list[Segment]) -> bool:
    """Replay one recording. Returns whether an answer differs."""
    from router.admission.record_files import RecordError
    from services.slo.admission.recording import Replay

    events = answers = 0
    for segment in found:
        replay = Replay(segment.core, segment.requests)
        try:
            difference = next(replay.differences(segment.events()), None)
        except RecordError:
            raise
        except Exception as error:  # Lines that do not belong together can break a core in any way.
            broken = f"{segment.path}, event {replay.events + 1} cannot be replayed: {type(error).__name__}: {error}"
            raise RecordError(broken) from error
        if difference is not None:
            typer.echo(f"{segment.path}, event {difference.position + 1}: {difference.event.kind} differs")
            for line in _compared(difference.recorded, difference.replayed):
                typer.echo(f"  {line}")
            return True
        events += replay.events
        answers += replay.answers
    typer.echo(f"{directory}: {events:,} events replayed, all of {answers:,} answers as recorded")
    return False


def _compared(recorded: object, replayed: object, name: str = "answer") -> Iterator[str]:
    """Yield the parts of two answers that differ, each under its name."""
    if recorded == replayed:
        return
    if is_dataclass(recorded) and type(recorded) is type(replayed):
        for field in fields(recorded):
            yield from _compared(getattr(recorded, field.name), getattr(replayed, field.name), f"{name}.{field.name}")
    elif isinstance(recorded, tuple) and isinstance(replayed, tuple) and len(recorded) == len(replayed):
        for index, (one, other) in enumerate(zip(recorded, replayed, strict=True)):
            yield from _compared(one, other, f"{name}[{index}]")
    else:
        yield f"{name}: recorded {recorded}, replayed {replayed}"


def recorded_lines(directory: Path, request_id: str) -> Iterator[str]:
    """Yield what a recording says of a request, in the order in which it happened.

    Raises:
        RecordError: there is nothing to read, or the request is not in it.
    """
    from router.admission.record_files import RecordError, segments
    from services.slo.admission.recording.explanation import explain

    found = [segment for one in _recordings(directory) for segment in segments(one)]
    began_s: float | None = None
    for line in explain(chain.from_iterable(segment.events() for segment in found), request_id):
        if began_s is None:
            began_s = line.at_s
            if not line.came:
                yield "its arrival is not recorded any more: times count from the first that is"
        yield f"{line.at_s - began_s:+9.3f} s  {line.text}"
    if began_s is None:
        raise RecordError(f"no request {request_id!r} in this recording")
