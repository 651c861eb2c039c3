"""Machine code is kept for exactly the sources that it was made from, and all of it is made while warming up."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.planner_instances import Kind, draw
from services.slo.planner import Problem, interpret, plan_round
from services.slo.planner.kernels import compiled
from services.slo.planner.kernels.compiled import entry, in_machine_code

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
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "stated"))
    assert compiled._writable_cache() == tmp_path / "stated" / f"machine-code-{compiled._digest()}"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert compiled._writable_cache() == package / "__pycache__" / f"machine-code-{compiled._digest()}"
    (package / "__pycache__").rename(tmp_path / "gone")
    (package / "__pycache__").write_text("a file stands where the directory would")
    assert compiled._writable_cache() == tmp_path / "home" / "slos-serve" / f"machine-code-{compiled._digest()}"
    (tmp_path / "home" / "slos-serve").rename(tmp_path / "gone too")
    (tmp_path / "home" / "slos-serve").write_text("another one")
    assert compiled._writable_cache() is None

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert compiled._writable_cache() is None


KINDS = (
    Kind(pending=6, promised=2),
    Kind(pending=24, running=8, equal_values=False, promised=3),
    Kind(pending=12, tiers=3, speculative=True, colocated=True, promised=4, roofline=True),
    Kind(pending=9, tight_memory=True, equal_values=False, overload=4.0),
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_python_and_machine_code_take_the_same_decisions(kind: Kind) -> None:
    for seed in range(6):
        problem = draw(kind, seed)
        problem = replace(problem, typical_arrival=problem.candidates[0], headroom_requests=1.0)
        machine_code = plan_round(problem)
        interpret(True)
        try:
            interpreted = plan_round(draw_again(problem, kind, seed))
            with in_machine_code():
                assert plan_round(problem) == machine_code
        finally:
            interpret(False)
        assert interpreted == machine_code


def draw_again(problem: Problem, kind: Kind, seed: int) -> Problem:
    """Return an equal problem that shares nothing with it: step tables are made anew."""
    return replace(draw(kind, seed), typical_arrival=problem.typical_arrival, headroom_requests=1.0)


def test_whoever_imports_the_planner_does_not_import_numba() -> None:
    program = "import sys; import services.slo.planner, services.slo.admission; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_machine_code_counts_as_kept_until_a_source_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("x")
    monkeypatch.setattr(compiled, "_KERNELS", tmp_path)
    monkeypatch.setattr(compiled, "_chosen_cache", lambda: tmp_path)
    assert not compiled.machine_code_is_kept()
    compiled.note_that_machine_code_is_kept()
    assert compiled.machine_code_is_kept()
    os.utime(tmp_path / "a.py", (1, 1))
    assert not compiled.machine_code_is_kept()
    monkeypatch.setattr(compiled, "_chosen_cache", lambda: None)
    compiled.note_that_machine_code_is_kept()
    assert not compiled.machine_code_is_kept()


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
    assert len(entries) > 8
    assert [name for name in entries if name not in called] == []
