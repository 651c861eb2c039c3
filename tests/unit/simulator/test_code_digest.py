"""A result depends on the code that it runs, and on no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import code_digest
from benchmarks.capacity_records import code_of


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`simulator.runs` uses what `services.both` passes on from one of its modules."""
    package = tmp_path / "services" / "both"
    package.mkdir(parents=True)
    (tmp_path / "simulator").mkdir()
    (tmp_path / "simulator" / "runs.py").write_text("import math\nfrom services.both import used\n")
    (package / "__init__.py").write_text("from services.both.one import used\nfrom services.both.two import unused\n")
    (package / "one.py").write_text("used = 1\n")
    (package / "two.py").write_text("unused = 1\n")
    monkeypatch.setattr(code_digest, "ROOT", tmp_path)
    return tmp_path


def digest() -> str:
    code_digest._imports.cache_clear()
    return code_digest.code_digest(["simulator.runs"])


def test_what_is_run_counts_and_its_neighbours_do_not(tree: Path) -> None:
    before = digest()
    (tree / "services" / "both" / "two.py").write_text("unused = 2\n")
    assert digest() == before
    (tree / "services" / "both" / "one.py").write_text("used = 2\n")
    assert digest() != before


def test_a_module_that_is_left_out_does_not_count(tree: Path) -> None:
    code_digest._imports.cache_clear()
    apart = {"services.both.one"}
    before = code_digest.code_digest(["simulator.runs"], apart)
    (tree / "services" / "both" / "one.py").write_text("used = 2\n")
    assert code_digest.code_digest(["simulator.runs"], apart) == before


def test_policies_depend_on_their_own_code() -> None:
    code_digest._imports.cache_clear()
    assert len({code_of(name) for name in ("ours-colocated", "qoserve", "slos-serve-paper", "sarathi")}) == 4
    assert code_of("sarathi") == code_of("vllm-chunked")
    assert code_of("ours-colocated") == code_of("ours-disaggregated")


def test_a_missing_module_is_an_error(tree: Path) -> None:
    with pytest.raises(FileNotFoundError):
        code_digest.code_digest(["simulator.missing"])
