"""One area under mutation: what cosmic-ray keeps of it in a database, so that a run goes on where it was stopped."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray import plugins
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import use_mutation
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

from tests.mutation.areas import Area
from tests.mutation.operators import PROVIDER, Operators
from tests.mutation.sampling import choose
from tests.mutation.tree import STATE, run_tests, run_unchanged

_PATIENCE = 5.0
"""A change is taken for an endless loop, and noticed, when tests take this many times as much of a processor as without
it."""
_LEAST_PATIENCE_S = 15.0


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


def _fill(work: WorkDB, area: Area, tree: Path, seed: int, sample: int | None) -> None:
    init(area.sources, work, {})
    chosen = choose(tree, work.work_items, seed, sample)
    others = [item.job_id for item in work.work_items if item.job_id not in chosen]
    work.set_multiple_results(others, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))


def _try(mutation: MutationSpec, area: Area, tree: Path, most_cpu_s: int) -> WorkResult:
    """Make one change, run the tests of its area, and undo it."""
    operator = plugins.get_operator(mutation.operator_name)()
    with use_mutation(mutation.module_path, operator, mutation.occurrence) as (before, after):
        run = run_tests(tree, area.tests, interpreted=area.interpreted, most_cpu_s=most_cpu_s)
    return WorkResult(
        worker_outcome=WorkerOutcome.NORMAL,
        test_outcome=TestOutcome.KILLED if run.noticed else TestOutcome.SURVIVED,
        diff="\n".join(difflib.ndiff(before.splitlines(), after.splitlines())),
    )


def _survivor(item: WorkItem, result: WorkResult) -> Survivor:
    mutation = item.mutations[0]
    lines = (result.diff or "").splitlines()
    return Survivor(
        file=str(mutation.module_path),
        line=mutation.start_pos[0],
        removed=" ".join(line[2:].strip() for line in lines if line.startswith("- ")),
        added=" ".join(line[2:].strip() for line in lines if line.startswith("+ ")),
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
    usual_s = run_unchanged(tree, area.tests, interpreted=area.interpreted)
    most_cpu_s = math.ceil(max(_LEAST_PATIENCE_S, _PATIENCE * usual_s))
    path = _database(area, tree, seed, sample)
    plugins.OPERATOR_PROVIDERS[PROVIDER] = Operators()
    with contextlib.chdir(tree), use_db(str(path)) as work:
        if not work.num_work_items:
            _fill(work, area, tree, seed, sample)
        items = list(work.pending_work_items)
        if again:
            items += [item for item, result in work.completed_work_items if result.test_outcome == TestOutcome.SURVIVED]
        yield _summary(area, work)
        for item in sorted(items, key=lambda item: (str(item.mutations[0].module_path), item.mutations[0].start_pos)):
            work.set_result(item.job_id, _try(item.mutations[0], area, tree, most_cpu_s))
            yield _summary(area, work)
