"""Words of the documentation: pages tell how things are, and leave how they were to the changelog and to git."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.markdown_pages import ROOT, pages, prose

HISTORY = re.compile(
    r"\b(?:an earlier (?:version|run)|as it (?:is now|was before)|in earlier versions|used to be|formerly)\b",
    re.IGNORECASE,
)
ABOUT_TIME = {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md", "docs/how-to/upgrade.md"}
README_LINES = 120


def told(page: Path) -> list[str]:
    # A phrase may be broken over two lines.
    return HISTORY.findall(re.sub(r"\s+", " ", prose(page)))


@pytest.mark.parametrize(
    "page",
    [page for page in pages() if str(page.relative_to(ROOT)) not in ABOUT_TIME and page.parent.name != "decisions"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_page_tells_no_history(page: Path) -> None:
    assert told(page) == []


def test_what_history_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("In an earlier\nversion it was slow. As it is now, it is fast.\n\n```\nan earlier version\n```\n")
    assert told(page) == ["an earlier version", "As it is now"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < README_LINES
