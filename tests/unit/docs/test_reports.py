"""Every report says when its figures were measured, on which code, and by which command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.markdown_pages import ROOT

REPORTS = sorted((ROOT / "docs" / "reports").glob("*.md"))
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
DATE = rf"\b\d{{1,2}} ({MONTHS})\b|\b({MONTHS}) 20\d\d\b"
COMMIT = r"\b[Cc]ommits? `?[0-9a-f]{7}"
COMMAND = r"slos-serve (bench|plan)|make \w+|python -m|vllm bench"


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.stem)
def test_a_report_names_date_commit_and_command(report: Path) -> None:
    text = report.read_text()
    missing = [
        name
        for name, pattern in (("date", DATE), ("commit", COMMIT), ("command", COMMAND))
        if not re.search(pattern, text)
    ]
    assert missing == []
