"""Where commands and benchmarks write to."""

from __future__ import annotations

import pytest

from services.terminal.console import FILE_WIDTH, make_console


def test_what_goes_to_a_pipe_need_not_fit_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    make_console().print("x" * FILE_WIDTH)
    make_console(stderr=True).print("[bold]y[/]")
    written = capsys.readouterr()
    assert written.out.splitlines() == ["x" * FILE_WIDTH]
    assert written.err.splitlines() == ["y"]
