"""Every locked package can be installed on the oldest Python that the project supports."""

from __future__ import annotations

import re
from importlib import metadata

from packaging.specifiers import SpecifierSet

from tests.support.markdown_pages import ROOT

OLDEST_PYTHON = "3.11.0"
PIN = re.compile(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)", re.MULTILINE)


def test_no_installed_pin_refuses_the_oldest_python() -> None:
    pins = {
        (_normal(name), version)
        for lock in (ROOT / "requirements").glob("*.lock")
        for name, version in PIN.findall(lock.read_text())
    }
    installed = {(_normal(each.name), each.version): each for each in metadata.distributions()}
    # Locks for other accelerators name packages that are not installed, whose metadata nobody can read here.
    known = pins & installed.keys()
    assert len(known) > 100
    refusing = {pin for pin in known if OLDEST_PYTHON not in SpecifierSet(_requires_python(installed[pin]))}
    assert refusing == set()


def test_the_project_itself_supports_the_oldest_python() -> None:
    written = re.search(r'^requires-python = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert written is not None
    assert OLDEST_PYTHON in SpecifierSet(written[1])


def _requires_python(distribution: metadata.Distribution) -> str:
    # An absent header reads as None, whatever the annotation says.
    return distribution.metadata["Requires-Python"] or ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
