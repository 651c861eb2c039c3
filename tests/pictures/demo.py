"""Draw what `slos-serve demo` printed: `python -m tests.pictures.demo [FILE]`; without a file the demo is run first."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.pictures.pages import DIRECTORY, save
from tests.support.browser import chromium, chromium_path

NAME = "demo"
PRINTED = DIRECTORY / f"{NAME}.txt"
"""What the picture shows, as text: a test compares its headings with the acts."""
ACTS = re.compile(r"^1  .*?(?=^The end$)", re.MULTILINE | re.DOTALL)
STYLES = (
    (r"^\d  .*$", "bold"),
    (r"(?<= )kept(?= *$)|act \d: ok.*$|\d+ of \d+ promised.*$|promised; the first.*$", "green"),
    (r"missed|FAILED.*$|^  refused: .*$|kill -9 \d+", "red"),
)


def acts(printed: str) -> str:
    """Return the four acts of what the demo printed, without the start of the cluster and without its end.

    Raises:
        ValueError: they are not all there.
    """
    found = ACTS.search(printed)
    if found is None:
        raise ValueError("the demo did not come to its end")
    return "\n".join(line.rstrip() for line in found.group().splitlines()).rstrip() + "\n"


def drawn(text: str) -> str:
    """Return a picture of a terminal with the text, as SVG without fonts from elsewhere."""
    lines = Text(text)
    for pattern, style in STYLES:
        lines.highlight_regex(re.compile(pattern, re.MULTILINE), style)
    columns = max(len(line) for line in text.splitlines())
    console = Console(record=True, width=columns + 1, file=io.StringIO(), force_terminal=True)
    console.print(lines)
    return re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="make demo"), flags=re.DOTALL)


def main() -> int:
    if not chromium_path():
        print("no Chromium on the path: `make test-tools` installs it", file=sys.stderr)
        return 1
    if len(sys.argv) > 1:
        printed = Path(sys.argv[1]).read_text()
    else:
        printed = subprocess.run(["slos-serve", "demo"], stdout=subprocess.PIPE, text=True, check=True).stdout
    text = acts(printed)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.set_content(drawn(text))
        save(page.locator("svg").first.screenshot(), NAME)
    PRINTED.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
