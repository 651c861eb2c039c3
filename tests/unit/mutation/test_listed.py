"""The listed changes and the areas fit the code as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation.areas import load_areas
from tests.mutation.listed import Change, StaleChangeError, load_changes
from tests.mutation.tree import ROOT


@pytest.mark.parametrize("change", load_changes(), ids=lambda change: change.name)
def test_every_listed_change_can_be_made(change: Change) -> None:
    before = (ROOT / change.file).read_text()
    after = change.applied(before)
    assert after != before
    compile(after, change.file, "exec")


def test_a_change_of_text_that_is_gone_says_so() -> None:
    change = Change("moved", "a.py", old="x = 1", new="x = 2", tests=())
    with pytest.raises(StaleChangeError, match=r"moved: 0 times in a\.py"):
        change.applied("x = 3")
    with pytest.raises(StaleChangeError, match="2 times"):
        change.applied("x = 1\nx = 1")


def test_areas_name_code_and_tests_that_are_there() -> None:
    for area in load_areas(ROOT).values():
        assert area.sources, area.name
        assert area.tests, area.name


def test_an_area_of_code_that_is_gone_says_so(tmp_path: Path) -> None:
    (tmp_path / "areas.toml").write_text('[areas.a]\nsources = ["gone/*.py"]\ntests = []\n')
    with pytest.raises(ValueError, match=r"area a: nothing matches 'gone/\*\.py'"):
        load_areas(tmp_path, tmp_path / "areas.toml")
