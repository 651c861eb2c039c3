"""Links of the documentation: every file and every anchor that a page names is there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify, unique

from tests.support.markdown_pages import ROOT, pages, prose, tracked_files

LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
HEADING = re.compile(r"^#{1,6} +(.+?)(?: +\{ *#(?P<named>[\w-]+) *\})? *#*$", re.MULTILINE)
MENTION = re.compile(r"(?<![\w/.-])docs/[\w./-]+\.(?:md|svg|png)\b")
DOCS = ROOT / "docs"


def headings(page: Path) -> list[str]:
    """Headings as they are read: without marks of code, emphasis and links."""
    found = []
    for match in HEADING.finditer(prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match.group(1))
        found.append(text.replace("`", "").replace("*", ""))
    return found


def anchors_of_the_site(page: Path) -> set[str]:
    named = {match["named"] for match in HEADING.finditer(prose(page)) if match["named"]}
    taken: set[str] = set()
    return named | {unique(slugify(text, "-"), taken) for text in headings(page)}


def anchors_of_a_repository(page: Path) -> set[str]:
    """Anchors as code hosts make them."""
    seen: Counter[str] = Counter()
    found = set()
    for text in headings(page):
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def faults(page: Path) -> list[str]:
    found = []
    for match in LINK.finditer(prose(page)):
        target, _, anchor = match.group(1).partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists():
            found.append(f"{match.group(1)}: no such file")
        elif anchor and file.suffix == ".md":
            known = anchors_of_the_site(file) if file.is_relative_to(DOCS) else anchors_of_a_repository(file)
            if anchor not in known:
                found.append(f"{match.group(1)}: no such heading")
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert faults(page) == []


def test_pages_that_code_and_text_name_are_there() -> None:
    missing = []
    for path in tracked_files():
        if path.suffix in {".md", ".py", ".toml", ".yml", ".sh", ".proto"} and path != Path(__file__):
            text = path.read_text()
            named = MENTION.findall(text) if "docs/" in text else ()
            missing += [f"{path.relative_to(ROOT)}: {name}" for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_pages_of_the_site_are_reached_from_its_start() -> None:
    reached, open_pages = set(), [DOCS / "index.md"]
    while open_pages:
        page = open_pages.pop()
        if page in reached:
            continue
        reached.add(page)
        for match in LINK.finditer(prose(page)):
            target = (page.parent / match.group(1).partition("#")[0]).resolve()
            if target.suffix == ".md" and target.is_relative_to(DOCS) and target.exists():
                open_pages.append(target)
    lost = sorted(str(page.relative_to(DOCS)) for page in pages() if page.is_relative_to(DOCS) and page not in reached)
    assert lost == []


def test_what_a_wrong_link_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`\n\n[a](#one-two) [b](#three) [c](other.md) [d](https://example.org/x.md)\n")
    assert faults(page) == ["#three: no such heading", "other.md: no such file"]
