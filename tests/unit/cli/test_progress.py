"""What is shown while a cluster starts."""

from __future__ import annotations

import io

from rich.console import Console

from cli.progress import StartProgress
from deploy.local.start_times import Awaited


def awaited(name: str, waited_s: float, usual_s: float | None = None) -> Awaited:
    return Awaited(name, "loads a model", waited_s, usual_s)


def lines_of(output: io.StringIO) -> list[str]:
    return [line.strip() for line in output.getvalue().splitlines() if line.strip()]


def test_without_a_terminal_there_is_one_line_about_what_begins_and_one_for_each_process_that_is_ready() -> None:
    output = io.StringIO()
    progress = StartProgress(Console(file=output, width=120))
    progress.waiting([awaited("prefill-0", 0.1, 41.3), awaited("router", 0.1)])
    progress.waiting([awaited("prefill-0", 1.2, 41.3), awaited("router", 1.2)])
    progress.waiting([awaited("prefill-0", 2.0, 41.3)])
    progress.waiting([awaited("prefill-0", 38.0, 41.3)])
    progress.waiting([])
    assert lines_of(output) == [
        "waiting for prefill-0 (last time 41.3 s), router",
        "router ready after 1.2 s",
        "prefill-0 ready after 38.0 s (last time 41.3 s)",
    ]


def test_a_terminal_shows_a_bar_for_each_process_and_keeps_the_lines_of_those_that_are_ready() -> None:
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    progress = StartProgress(console)
    progress.report("starting prefill-0")
    progress.waiting([awaited("prefill-0", 0.1, 41.3), awaited("router", 0.1)])
    progress.waiting([awaited("prefill-0", 12.0, 41.3)])
    progress.waiting([])
    shown = output.getvalue()
    assert "prefill-0 loads a model" in shown
    assert "12 s, last time 41 s" in shown or "0 s, last time 41 s" in shown
    assert "router ready after 0.1 s" in shown
    assert "prefill-0 ready after 12.0 s (last time 41.3 s)" in shown
    progress.waiting([awaited("gateway", 0.0)])
    progress.stop()
    assert "gateway ready" not in output.getvalue()
