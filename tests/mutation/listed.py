"""Changes that matter, written down one by one: each must make a unit test fail."""

from __future__ import annotations

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


def run_changes(tree: Path, changes: Sequence[Change], pattern: str = "") -> Iterator[tuple[Change, bool]]:
    """Make the changes whose name contains `pattern` one at a time in a copy; yield each with whether a test failed.

    Raises:
        StaleChangeError: a change does not fit the code any more.
        RuntimeError: tests fail without a change.
    """
    wanted = [change for change in changes if pattern in change.name]
    passed: set[tuple[str, ...]] = set()
    for change in wanted:
        file = tree / change.file
        text = file.read_text()
        tests = [test for test in change.tests if (tree / test).exists()]
        if tests and change.tests not in passed:
            run_unchanged(tree, tests, interpreted=change.interpreted)
            passed.add(change.tests)
        file.write_text(change.applied(text))
        try:
            yield change, bool(tests) and run_tests(tree, tests, interpreted=change.interpreted).noticed
        finally:
            file.write_text(text)
