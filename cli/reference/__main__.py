"""Writes every generated block of the pages below `docs/` anew: `make reference`."""

from __future__ import annotations

from pathlib import Path

from cli.reference.blocks import BLOCKS
from cli.reference.page import filled

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main() -> None:
    """Write the pages that are stale, and print their names."""
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text()
        if (current := filled(text, BLOCKS)) != text:
            page.write_text(current)
            print(page.relative_to(DOCS.parent))  # noqa: T201


if __name__ == "__main__":
    main()
