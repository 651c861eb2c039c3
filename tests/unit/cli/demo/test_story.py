"""An act says whether it showed its point, whatever happens in it, and on any terminal."""

from __future__ import annotations

import asyncio
from io import StringIO
from typing import TYPE_CHECKING

import grpc
import pytest
from rich.console import Console
from rich.text import Text

from cli.demo.stage import Stage
from cli.demo.story import played
from slos_serve import SlosServeError
from slos_serve.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def stage(*, terminal: bool = False) -> tuple[Stage, StringIO]:
    output = StringIO()
    return Stage(Console(file=output, width=100, force_terminal=terminal, _environ={"TERM": "xterm"})), output


async def shows_its_point() -> str:
    return ""


async def does_not() -> str:
    return "only 3 of 16 [were] promised"


async def breaks_off() -> str:
    raise SlosServeError(Failure(grpc.StatusCode.UNAVAILABLE, "nobody there"))


async def never_ends() -> str:
    await asyncio.Event().wait()
    return ""


@pytest.mark.parametrize(
    ("play", "failure", "line"),
    [
        (shows_its_point, "", "act 7: ok ("),
        (does_not, "only 3 of 16 [were] promised", "act 7: FAILED: only 3 of 16 [were] promised ("),
        (breaks_off, "UNAVAILABLE: nobody there", "act 7: FAILED: UNAVAILABLE: nobody there ("),
        (never_ends, "it took longer than 0 s", "act 7: FAILED: it took longer than 0 s ("),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_an_act_ends_with_its_verdict(play: Callable[[], Awaitable[str]], failure: str, line: str) -> None:
    where, output = stage()
    result = await played(where, "7  An act", play, longest_s=0.01)
    assert (result.title, result.failure) == ("7  An act", failure)
    assert "7  An act" in output.getvalue().splitlines()
    assert line in output.getvalue()


async def test_a_picture_moves_on_a_terminal_only() -> None:
    for terminal in (True, False):
        where, output = stage(terminal=terminal)
        done: list[str] = []

        async def work(done: list[str] = done) -> None:
            await asyncio.sleep(0)
            done.append("everything")

        def picture(done: list[str] = done) -> Text:
            return Text(f"done: {len(done)}")

        await where.during(work(), picture)
        assert done == ["everything"]
        assert ("done: 0" in output.getvalue()) is terminal


async def test_what_the_work_raises_is_not_hidden() -> None:
    for terminal in (True, False):
        where, _ = stage(terminal=terminal)
        with pytest.raises(SlosServeError, match="nobody there"):
            await where.during(breaks_off(), Text)
