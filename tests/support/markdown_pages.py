"""The Markdown pages of the repository, as the tests of the documentation read them: links, anchors, blocks of code."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNNABLE = "<!-- runnable -->"
"""The line above a block of Python or JavaScript that `tests/cluster/test_documentation.py` runs."""
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[a-z]*)[^`]*$")


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """One fenced block of code of a page."""

    page: Path
    line: int
    """Number of the block's first line of code in its page, from 1."""
    language: str
    """Language that the fence names; may be empty."""
    text: str
    runnable: bool
    """Whether the page says that the block runs as it is."""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def tracked_files() -> tuple[Path, ...]:
    """Return every file that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(path for path in (ROOT / name for name in sorted(set(listed.stdout.splitlines()))) if path.is_file())


def pages() -> tuple[Path, ...]:
    """Return every Markdown page of the repository."""
    return tuple(path for path in tracked_files() if path.suffix == ".md")


def code_blocks(page: Path) -> Iterator[CodeBlock]:
    """Yield the fenced blocks of a page."""
    lines = page.read_text().splitlines()
    start: int | None = None
    fence = language = ""
    for number, line in enumerate(lines):
        opened = _FENCE.match(line)
        if start is None and opened:
            start, fence, language = number + 1, opened["fence"], opened["language"]
        elif start is not None and line.strip() == fence:
            text = "\n".join(lines[start:number]) + "\n"
            runnable = start >= 2 and lines[start - 2].strip() == RUNNABLE
            yield CodeBlock(page, start + 1, language, text, runnable)
            start = None
    assert start is None, f"{page}: a block of code has no end"


def prose(page: Path) -> str:
    """Return the text of a page with its blocks of code left empty, so that lines keep their numbers."""
    kept: list[str] = []
    fence = ""
    for line in page.read_text().splitlines():
        opened = _FENCE.match(line)
        if not fence and opened:
            fence = opened["fence"]
            kept.append("")
        elif fence:
            fence = "" if line.strip() == fence else fence
            kept.append("")
        else:
            kept.append(line)
    return "\n".join(kept) + "\n"
