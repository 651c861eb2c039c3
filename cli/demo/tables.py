"""The tables of the demo. Times are in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from cli.demo.streams import DemoStream, Served
from cli.demo.tally import tally

SHOWN_CHARACTERS = 60
LINE_CHARACTERS = 100


def running_table(streams: Sequence[DemoStream]) -> Table:
    """Return a picture of streams while they run: the verdict, and the end of the text so far."""
    table = Table(box=None, padding=(0, 1))
    table.add_column("request")
    table.add_column("answer")
    table.add_column("tokens", justify="right")
    table.add_column("text", no_wrap=True)
    for stream in streams:
        verdict = "" if stream.admission is None else stream.admission.verdict.name.lower().replace("_", " ")
        text = "failed" if stream.error is not None else _one_line(stream.text)[-SHOWN_CHARACTERS:]
        table.add_row(stream.name, verdict, str(len(stream.token_ids)), text)
    return table


def promises_table(served: Sequence[Served]) -> Table:
    """Return what was asked, expected and came, request by request."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("\nrequest")
    for target in ("TTFT", "TPOT"):
        for column in ("asked", "expected", "came"):
            table.add_column(f"{target}\n{column}", justify="right")
    table.add_column("\npromise")
    for request in served:
        table.add_row(request.name, *_figures(request), _promise(request))
    return table


def comparison_table(with_promises: Sequence[Served], without: Sequence[Served]) -> Table:
    """Return, profile by profile, how many requests came in time and the longest times, with promises and without."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("\nprofile")
    for over, under in (
        *(("asked", "TTFT"), ("", "TPOT")),
        *(("promises", "in time"), ("slowest", "TTFT"), ("", "TPOT")),
        *(("without", "in time"), ("slowest", "TTFT"), ("", "TPOT")),
    ):
        table.add_column(f"{over}\n{under}", justify="right")
    for profile in dict.fromkeys(request.profile for request in with_promises):
        promised = [request for request in with_promises if request.profile == profile]
        plain = [request for request in without if request.profile == profile]
        ttft_s = max(request.targets.ttft_s for request in promised)
        tpot_s = max(request.targets.tpot_s for request in promised)
        table.add_row(profile, _ms(ttft_s), _ms(tpot_s), *_came(promised), *_came(plain))
    table.add_section()
    table.add_row("all", "", "", _in_time(with_promises), "", "", _in_time(without), "", "")
    return table


def head(text: str) -> str:
    """Return the beginning of a text in one line."""
    line = _one_line(text)
    return line if len(line) <= LINE_CHARACTERS else f"{line[:LINE_CHARACTERS]}..."


def tail(text: str) -> str:
    """Return the end of a text in one line."""
    line = _one_line(text)
    return line if len(line) <= LINE_CHARACTERS else f"...{line[-LINE_CHARACTERS:]}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}"


def _figures(request: Served) -> list[str]:
    targets, expected, achieved = request.targets, request.expected, request.achieved
    return [
        _ms(targets.ttft_s),
        "" if expected is None else _ms(expected.ttft_s),
        "" if achieved is None else _ms(achieved.ttft_s),
        _ms(targets.tpot_s),
        "" if expected is None else _ms(expected.tpot_s),
        "" if achieved is None else _ms(achieved.tpot_s),
    ]


def _promise(request: Served) -> str:
    if request.error:
        return f"[red]failed: {escape(request.error)}[/]"
    if request.promised:
        return "[green]kept[/]" if request.in_time else "[red]MISSED[/]"
    return "none, in time" if request.in_time else "none, late"


def _in_time(served: Sequence[Served]) -> str:
    return f"{tally(served).in_time} of {len(served)}"


def _came(served: Sequence[Served]) -> list[str]:
    came = [request.achieved for request in served if request.achieved is not None]
    return [
        _in_time(served),
        _ms(max((achieved.ttft_s for achieved in came), default=0.0)),
        _ms(max((achieved.tpot_s for achieved in came), default=0.0)),
    ]
