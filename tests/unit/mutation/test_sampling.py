"""A sample of changes is the same for the same seed and leaves out what decides nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from cosmic_ray import plugins
from cosmic_ray.commands.init import init
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import WorkItem

from tests.mutation.operators import PROVIDER, Operators
from tests.mutation.sampling import choose

SOURCE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Job:
    due_s: float | None = None

    def left_s(self, *, now_s: float) -> float | None:
        assert now_s > 0
        log.info("asked at %f", now_s + 1)
        print(f"{now_s - 1}")
        return None if self.due_s is None else self.due_s - now_s
"""


@pytest.fixture
def items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[WorkItem]:
    """Every change that cosmic-ray finds in the source."""
    (tmp_path / "job.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(plugins.OPERATOR_PROVIDERS, PROVIDER, Operators())
    with use_db(str(tmp_path / "work.sqlite")) as work:
        init([Path("job.py")], work, {})
        return list(work.work_items)


def lines(items: list[WorkItem], jobs: set[str]) -> list[str]:
    source = SOURCE.splitlines()
    return sorted(source[item.mutations[0].start_pos[0] - 1].strip() for item in items if item.job_id in jobs)


def test_types_decorators_assertions_and_words_are_left_alone(items: list[WorkItem], tmp_path: Path) -> None:
    chosen = lines(items, choose(tmp_path, items, seed=1, sample=None))
    assert set(chosen) == {'print(f"{now_s - 1}")', "return None if self.due_s is None else self.due_s - now_s"}
    assert chosen.count('print(f"{now_s - 1}")') == 1, "the call may be dropped, its words may not be changed"


def test_one_change_is_tried_at_each_place(items: list[WorkItem], tmp_path: Path) -> None:
    jobs = choose(tmp_path, items, seed=1, sample=None)
    places = [item.mutations[0].start_pos + item.mutations[0].end_pos for item in items if item.job_id in jobs]
    assert len(places) == len(set(places))


def test_a_sample_is_repeated_by_its_seed(items: list[WorkItem], tmp_path: Path) -> None:
    assert len(choose(tmp_path, items, seed=1, sample=3)) == 3
    assert choose(tmp_path, items, seed=1, sample=3) == choose(tmp_path, list(reversed(items)), seed=1, sample=3)
    assert len({frozenset(choose(tmp_path, items, seed=seed, sample=3)) for seed in range(9)}) > 1
