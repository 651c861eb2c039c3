"""One area under mutation: what cosmic-ray keeps of it in a database, so that a run goes on where it was stopped."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray import plugins
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult

from tests.mutation.areas import Area
from tests.mutation.operators import PROVIDER, Operators
from tests.mutation.sampling import choose
from tests.mutation.tree import STATE, environment, pytest_command, run_unchanged

_PATIENCE = 4.0
"""A change is taken for an endless loop, and noticed, when tests take this many times as long as without it."""
_LEAST_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Survivor:
    """A change that no test noticed."""

    file: str
    line: int
    removed: str
    added: str


@dataclass(frozen=True, slots=True)
class AreaResult:
    """How many of an area's changes were noticed."""

    area: str
    chosen: int
    """Number of changes in the sample, tried or not yet."""
    tried: int
    noticed: int
    survivors: tuple[Survivor, ...]


def _database(area: Area, tree: Path, seed: int, sample: int | None) -> Path:
    """Return the database of one sample of exactly these sources."""
    digest = hashlib.blake2b(digest_size=6)
    for source in area.sources:
        digest.update(str(source).encode() + (tree / source).read_bytes())
    size = "all" if sample is None else str(sample)
    return STATE / f"{area.name}-{digest.hexdigest()}-seed{seed}-{size}.sqlite"


@contextlib.contextmanager
def _in_tree(tree: Path, *, interpreted: bool) -> Iterator[None]:
    """Work in the copy: cosmic-ray takes paths from the current directory, and the tests' environment from its own."""
    before_environment, before = dict(os.environ), Path.cwd()
    os.environ.update(environment(tree, interpreted=interpreted))
    os.chdir(tree)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(before_environment)


def _fill(work: WorkDB, area: Area, tree: Path, seed: int, sample: int | None) -> None:
    plugins.OPERATOR_PROVIDERS[PROVIDER] = Operators()
    init(area.sources, work, {})
    chosen = choose(tree, work.work_items, seed, sample)
    others = [item.job_id for item in work.work_items if item.job_id not in chosen]
    work.set_multiple_results(others, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))


def _survivor(item: WorkItem, result: WorkResult) -> Survivor:
    mutation = item.mutations[0]
    lines = [line for line in (result.diff or "").splitlines() if not line.startswith(("---", "+++", "@@"))]
    return Survivor(
        file=str(mutation.module_path),
        line=mutation.start_pos[0],
        removed=" ".join(line[1:].strip() for line in lines if line.startswith("-")),
        added=" ".join(line[1:].strip() for line in lines if line.startswith("+")),
    )


def _summary(area: Area, work: WorkDB) -> AreaResult:
    done = [
        (item, result) for item, result in work.completed_work_items if result.worker_outcome != WorkerOutcome.SKIPPED
    ]
    survivors = [_survivor(item, result) for item, result in done if result.test_outcome == TestOutcome.SURVIVED]
    return AreaResult(
        area=area.name,
        chosen=len(done) + len(work.pending_work_items),
        tried=len(done),
        noticed=len(done) - len(survivors),
        survivors=tuple(sorted(survivors, key=lambda survivor: (survivor.file, survivor.line, survivor.added))),
    )


def run_area(area: Area, tree: Path, *, seed: int, sample: int | None, again: bool) -> Iterator[AreaResult]:
    """Try the changes of an area one by one, in a copy of the repository; yield the result so far after each.

    Args:
        again: try those once more that no test noticed last time, for tests have been added since.

    Raises:
        RuntimeError: the tests fail without any change.
    """
    timeout_s = max(_LEAST_PATIENCE_S, _PATIENCE * run_unchanged(tree, area.tests, interpreted=area.interpreted))
    path = _database(area, tree, seed, sample)
    with _in_tree(tree, interpreted=area.interpreted), use_db(str(path)) as work:
        if not work.num_work_items:
            _fill(work, area, tree, seed, sample)
        items = list(work.pending_work_items)
        if again:
            items += [item for item, result in work.completed_work_items if result.test_outcome == TestOutcome.SURVIVED]
        yield _summary(area, work)
        for item in sorted(items, key=lambda item: (str(item.mutations[0].module_path), item.mutations[0].start_pos)):
            result = mutate_and_test(item.mutations, shlex.join(pytest_command(area.tests)), timeout_s)
            if result.worker_outcome != WorkerOutcome.NORMAL:
                raise RuntimeError(f"{area.name}: cosmic-ray could not make a change: {result.output}")
            work.set_result(item.job_id, result)
            yield _summary(area, work)
