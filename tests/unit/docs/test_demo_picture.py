"""The picture of the demo shows the acts that the demo plays: `make pictures` draws it again."""

from __future__ import annotations

import re

import pytest

from cli.demo.acts import comparison, promises, recovery, refusal
from tests.pictures.demo import NAME, PRINTED, acts
from tests.pictures.pages import DIRECTORY, MOST_BYTES

TITLES = [act.TITLE for act in (promises, comparison, refusal, recovery)]


def test_the_picture_shows_every_act_and_each_succeeded() -> None:
    text = PRINTED.read_text()
    assert re.findall(r"^\d  .*$", text, re.MULTILINE) == TITLES
    assert re.findall(r"act (\d): ok", text) == [title[0] for title in TITLES]
    assert (DIRECTORY / f"{NAME}.png").stat().st_size <= MOST_BYTES


def test_a_picture_begins_with_the_first_act_and_ends_with_the_last() -> None:
    printed = "  starting router\n\n1  One\n  act 1: ok  \n\n2  Two\n  act 2: ok\n\nThe end\n  stopping\n"
    assert acts(printed) == "1  One\n  act 1: ok\n\n2  Two\n  act 2: ok\n"
    with pytest.raises(ValueError, match="did not come to its end"):
        acts("1  One\n  act 1: ok\n")
