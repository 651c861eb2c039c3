"""Changes that matter, written down one by one: each must make a unit test fail."""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.tree import run_tests, run_unchanged

CHANGES_FILE = Path(__file__).with_name("listed.toml")


class StaleChangeError(ValueError):
    """A change whose old text is not found exactly once in its file: the code has moved on, so must the list."""


@dataclass(frozen=True, slots=True)
class Change:
    """One replacement of text in one file."""

    name: str
    """What goes wrong with it."""
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Arguments of pytest that select the tests of which one must fail."""
    interpreted: bool = False
    """Compiled functions run as plain Python."""

    def applied(self, text: str) -> str:
        """Return `text` with the change made.

        Raises:
            StaleChangeError: the old text is not there exactly once.
        """
        if (found := text.count(self.old)) != 1:
            raise StaleChangeError(f"{self.name}: {found} times in {self.file}:\n{self.old}")
        return text.replace(self.old, self.new)


def load_changes(file: Path = CHANGES_FILE) -> list[Change]:
    """Read the list."""
    return [Change(**{**entry, "tests": tuple(entry["tests"])}) for entry in tomllib.loads(file.read_text())["changes"]]


class Verdict(enum.Enum):
    """What came of one change."""

    NOTICED = "noticed"
    SURVIVED = "SURVIVED"
    STALE = "STALE"
    """It does not fit the code any more."""


def run_changes(tree: Path, changes: Sequence[Change], pattern: str = "") -> Iterator[tuple[Change, Verdict]]:
    """Make the changes whose name contains `pattern` one at a time in a copy, and run the tests of each.

    Raises:
        RuntimeError: tests fail without a change.
    """
    wanted = [change for change in changes if pattern in change.name]
    passed: set[tuple[str, ...]] = set()
    for change in wanted:
        file = tree / change.file
        try:
            before = file.read_text()
            after = change.applied(before)
        except (FileNotFoundError, StaleChangeError):
            yield change, Verdict.STALE
            continue
        if change.tests not in passed:
            run_unchanged(tree, change.tests, interpreted=change.interpreted)
            passed.add(change.tests)
        file.write_text(after)
        try:
            run = run_tests(tree, change.tests, interpreted=change.interpreted)
        finally:
            file.write_text(before)
        yield change, Verdict.NOTICED if run.noticed else Verdict.SURVIVED
