"""Machine code is kept for exactly the sources that it was made from, and all of it is made while warming up."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.slo.planner.kernels import compiled
from services.slo.planner.kernels.compiled import entry

KERNELS = Path(compiled.__file__).parent


def a_function_outside(number: int) -> int:
    return number


@pytest.mark.parametrize("decorate", [compiled.compiled, entry])
def test_only_kernels_are_compiled(decorate: object) -> None:
    with pytest.raises(ValueError, match=r"test_compiled.a_function_outside is compiled, so it belongs into"):
        decorate(a_function_outside)  # type: ignore[operator]


def test_a_change_of_any_kernel_makes_the_machine_code_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_KERNELS", tmp_path)
    (tmp_path / "nested").mkdir()
    seen = set()
    for name, text in (("a.py", "x"), ("b.py", "x"), ("a.py", "y"), ("nested/c.py", "x"), ("nested/c.py", "y")):
        (tmp_path / name).write_text(text)
        seen.add(compiled._digest())
    assert len(seen) == 5
    (tmp_path / "notes.txt").write_text("not a kernel")
    assert compiled._digest() in seen


def test_machine_code_goes_where_it_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(compiled, "_KERNELS", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert compiled._writable_cache() == package / "__pycache__" / f"machine-code-{compiled._digest()}"
    (package / "__pycache__").rename(tmp_path / "gone")
    (package / "__pycache__").write_text("a file stands where the directory would")
    assert compiled._writable_cache() == tmp_path / "home" / "slos-serve" / f"machine-code-{compiled._digest()}"
    (tmp_path / "home" / "slos-serve").rename(tmp_path / "gone too")
    (tmp_path / "home" / "slos-serve").write_text("another one")
    assert compiled._writable_cache() is None


CALLED = """
import sys
from services.slo.planner import warm_up
def note(frame, event, _):
    if event == "call":
        print(frame.f_code.co_filename, frame.f_code.co_name)
sys.setprofile(note)
warm_up()
"""


def test_a_warm_planner_has_compiled_every_part() -> None:
    """Whatever Python calls is called while it warms up; uncompiled, each call can be seen."""
    done = subprocess.run(
        [sys.executable, "-c", CALLED],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )
    called = set(done.stdout.splitlines())
    entries = [
        f"{path} {function.name}"
        for path in KERNELS.glob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(decorator, ast.Name) and decorator.id == "entry" for decorator in function.decorator_list)
    ]
    assert len(entries) > 10
    assert [name for name in entries if name not in called] == []
