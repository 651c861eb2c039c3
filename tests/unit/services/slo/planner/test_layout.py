"""Every table of the kernels is read by its own columns, and filled in the order of its columns."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.slo.planner import (
    Link,
    PromisedPrefill,
    Release,
    StepBound,
    Tiers,
    Topology,
    Worker,
    WorkerProfile,
    kernels,
)
from services.slo.planner.kernels import layout
from services.slo.planner.packing import CHOICES, REOFFERS, pack
from tests.unit.services.slo.planner.simple import ask, colocated, decoder, prefiller, problem_of

PLANNER = Path(kernels.__file__).parents[1]
TABLES = {
    "workers": {"WORKER"},
    "worker": {"WORKER"},
    "decoder": {"WORKER"},
    "future": {"WORKER"},
    "empty": {"WORKER"},
    "terms": {"WORKER"},
    "table": {"STEP", "CELL"},
    "step_tables": {"STEP", "CELL"},
    "cell": {"CELL"},
    "jobs": {"JOB"},
    "schedule": {"SCHEDULE"},
    "chosen_step": {"SCHEDULE"},
    "current": {"SCHEDULE"},
    "left": {"SCHEDULE"},
    "right": {"SCHEDULE"},
    "row": {"FRONTIER"},
    "rows": {"FRONTIER"},
    "skipped": {"FRONTIER"},
    "taken": {"FRONTIER"},
    "releases": {"RELEASE"},
    "release": {"RELEASE"},
    "release_row": {"RELEASE"},
    "reason": {"REASON"},
    "planned_steps": {"PLANNED"},
    "planned_step": {"PLANNED"},
    "placed": {"PLACED"},
    "saved": {"PLACED"},
    "source": {"PLACED"},
    "target": {"PLACED"},
    "members": {"MEMBER"},
    "decode_cost": {"DECODE"},
    "decode_costs": {"DECODE"},
    "settings": {"SETTING"},
}
"""Prefixes of the columns by which a variable of each name is indexed."""
PREFIXES = {prefix for prefixes in TABLES.values() for prefix in prefixes}
COLUMNS = {name for name in vars(layout) if name.split("_")[0] in PREFIXES}


def names_in(node: ast.AST) -> Iterator[str]:
    """Yield the names in an index, but for those that index something within it."""
    if isinstance(node, ast.Name):
        yield node.id
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Subscript):
            yield from names_in(child)


def misread(source: str) -> Iterator[str]:
    """Yield every place where a table is indexed by a column of another."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Subscript):
            continue
        base = node.value
        table = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
        index = [node.slice] if not isinstance(node.slice, ast.Subscript) else []
        used = {name.split("_")[0] for part in index for name in names_in(part) if name in COLUMNS}
        if not used <= TABLES.get(table, set()):
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", sorted(PLANNER.rglob("*.py")), ids=lambda path: path.name)
def test_no_table_is_indexed_by_a_column_of_another(path: Path) -> None:
    assert list(misread(path.read_text())) == []


def test_a_mixed_up_column_is_found() -> None:
    assert list(misread("state.jobs[job, WORKER_DECODES]")) == ["line 1: state.jobs[job, WORKER_DECODES]"]
    assert list(misread("row[extra_at + FRONTIER_NODE] + jobs[0, JOB_DUE_S]")) == []


def test_columns_of_a_table_do_not_overlap() -> None:
    for prefix in PREFIXES:
        values = [getattr(layout, name) for name in COLUMNS if name.split("_")[0] == prefix]
        assert sorted(values) == list(range(len(values))), prefix


BOUND = StepBound(0.01, 1e-3, 2e-3, 3e-6, 4e-9, 5e-3, 6e-3, 7e-6, 0.8)
PROFILE = WorkerProfile(BOUND, Tiers((0.05, 0.1)), 300)
WORKER = Worker(
    "w",
    PROFILE,
    prefills=True,
    decodes=False,
    kv_tokens_free=400,
    kv_tokens=500,
    running=(3, 4),
    context_tokens=(30, 40),
    slots_free=5,
    handover_steps=2.5,
    busy_s=0.25,
    ahead_s=0.05,
    promised=(PromisedPrefill(9.0, 70), PromisedPrefill(0.7, 50, 20, decode_tier=1, kv_tokens=90)),
    releases=(Release(3.0, 2, 20, 1), Release(1.0, 1, 10)),
)


def test_a_worker_fills_its_columns() -> None:
    row = WORKER.row
    assert row[layout.WORKER_BUSY_S] == pytest.approx(0.2)
    assert row[layout.WORKER_KV_FREE_TOKENS] == 400
    assert row[layout.WORKER_KV_TOKENS] == 500
    assert row[layout.WORKER_MAX_STEP_TOKENS] == 300
    assert row[layout.WORKER_FREE_SLOTS] == 5
    assert row[layout.WORKER_PREFILLS] == 1
    assert row[layout.WORKER_DECODES] == 0
    assert row[layout.WORKER_STEP_ROWS] == len(PROFILE.step_table) == 3
    assert row[layout.WORKER_OVERHEAD_S] == BOUND.overhead_s
    assert row[layout.WORKER_PER_TOKEN_S] == BOUND.per_token_s
    assert row[layout.WORKER_PER_REQUEST_S] == BOUND.per_request_s
    assert row[layout.WORKER_PER_CONTEXT_TOKEN_S] == BOUND.per_context_token_s
    assert row[layout.WORKER_PER_ATTENTION_PAIR_S] == BOUND.per_attention_pair_s
    assert row[layout.WORKER_PER_DRAFT_STEP_S] == BOUND.per_draft_step_s
    assert row[layout.WORKER_MEMORY_S] == BOUND.memory_s
    assert row[layout.WORKER_MEMORY_PER_CONTEXT_TOKEN_S] == BOUND.memory_per_context_token_s
    assert row[layout.WORKER_MEMORY_PER_WORK] == BOUND.memory_per_work
    assert row[layout.WORKER_HANDOVER_STEPS] == 2.5
    assert row[layout.WORKER_LOAD :].tolist() == [3, 4, 30, 40]


def test_promised_prefills_and_releases_fill_theirs_by_time() -> None:
    job = WORKER.jobs[0]
    assert (job[layout.JOB_DUE_S], job[layout.JOB_LIMIT_S], job[layout.JOB_READY_S]) == (0.7, 0.7, 0.0)
    assert job[layout.JOB_WORK_S] == pytest.approx(30 * 1e-3 + 2e-3 + 4e-9 * 30 * 35)
    assert (job[layout.JOB_LOCAL_TIER], job[layout.JOB_TIER], job[layout.JOB_VALUE]) == (1, 1, 0)
    assert (job[layout.JOB_PROMPT_TOKENS], job[layout.JOB_KV_TOKENS]) == (50, 90)
    assert WORKER.jobs[1, layout.JOB_DUE_S] == 9.0
    release = WORKER.release_rows[1]
    assert (release[layout.RELEASE_AT_S], release[layout.RELEASE_TIER]) == (3.0, 1)
    assert (release[layout.RELEASE_REQUESTS], release[layout.RELEASE_KV_TOKENS]) == (2, 20)


class TestPacked:
    def test_jobs_are_the_promised_then_the_candidates_then_the_typical_arrival(self) -> None:
        workers = [prefiller("p", promised=(PromisedPrefill(0.5, 20),)), decoder("d")]
        asked = ask("a", 30, deadline_s=0.7, tier=0, value=2.0)
        packed = pack(problem_of(workers, asked, typical_arrival=ask("t", 77), headroom_requests=3.0), 99.0)
        state = packed.state
        assert state.settings[layout.SETTING_PROMISED_JOBS] == 1
        assert state.settings[layout.SETTING_WORK_LIMIT] == 99.0
        assert state.settings[layout.SETTING_HEADROOM_REQUESTS] == 3.0
        assert state.jobs[:, layout.JOB_PROMPT_TOKENS].tolist() == [20, 30, 77]
        job = state.jobs[1]
        assert (job[layout.JOB_DUE_S], job[layout.JOB_LIMIT_S], job[layout.JOB_READY_S]) == (0.7, 0.7, 0.0)
        assert (job[layout.JOB_VALUE], job[layout.JOB_KV_TOKENS], job[layout.JOB_TIER]) == (2.0, 130, 0)
        assert state.queue[0, 0] == 0
        assert state.queued.tolist() == [1, 0]

    def test_a_transfer_takes_its_link_and_the_prompt(self) -> None:
        workers = [prefiller("p0"), prefiller("p1"), decoder("d0"), decoder("d1")]
        links = {("p1", "d0"): Link(0.5, 1e6), ("d0", "p1"): Link(7.0)}
        topology = Topology.of(workers, Link(0.1, 1e5), links, kv_bytes_per_token=1000.0)
        packed = pack(problem_of(workers, ask("a", 10), ask("b", 40), topology=topology), 1.0)
        ids, state = [worker.worker_id for worker in packed.workers], packed.state
        for candidate, tokens in enumerate((10, 40)):
            for option, index in enumerate(state.prefillers[candidate]):
                for other, there in enumerate(state.decoders[candidate]):
                    special = (ids[index], ids[there]) == ("p1", "d0")
                    expected = 0.5 + tokens * 1e-3 if special else 0.1 + tokens * 1e-2
                    assert state.handover_s[candidate, option, other] == pytest.approx(expected)

    def test_cached_tokens_are_those_of_the_worker(self) -> None:
        workers = [colocated(f"w{index}") for index in range(3)]
        packed = pack(problem_of(workers, ask("a", cached=(("w1", 20), ("gone", 30))), ask("b")), 1.0)
        ids, state = [worker.worker_id for worker in packed.workers], packed.state
        for option, index in enumerate(state.prefillers[0]):
            assert state.cached[0, option] == (20 if ids[index] == "w1" else 0)
        assert not state.cached[1].any()

    def test_of_many_workers_each_candidate_has_a_few_of_its_own(self) -> None:
        workers = [prefiller(f"p{index}") for index in range(50)] + [decoder(f"d{index}") for index in range(60)]
        asked = [ask(f"c{index}", cached=(("p7", 20),) if index == 3 else ()) for index in range(10)]
        packed = pack(problem_of(workers, *asked, seed=5), 1.0)
        ids, state = [worker.worker_id for worker in packed.workers], packed.state
        wanted = CHOICES * (1 + REOFFERS)
        for options, letter in ((state.prefillers, "p"), (state.decoders, "d")):
            chosen = [[ids[index] for index in row if index >= 0] for row in options]
            assert all(len(set(row)) == len(row) >= wanted for row in chosen)
            assert all(name[0] == letter for row in chosen for name in row)
            assert len({tuple(row) for row in chosen}) == len(chosen), "every candidate draws for itself"
        assert ids[state.prefillers[3, 0]] == "p7"
        assert state.cached[3, 0] == 20
        assert len(packed.workers) <= len(asked) * 2 * (wanted + 1) < 300
        again = pack(problem_of(workers, *asked, seed=6), 1.0)
        assert [worker.worker_id for worker in again.workers] != ids

    def test_every_worker_of_a_small_pool_is_an_option_and_no_pool_is_favoured(self) -> None:
        workers = [prefiller(f"p{index}") for index in range(3)] + [decoder()]
        first = np.zeros(3)
        for seed in range(60):
            state = pack(problem_of(workers, ask(), seed=seed), 1.0).state
            assert sorted(state.prefillers[0]) == [0, 1, 2]
            first[state.prefillers[0, 0]] += 1
        assert first.min() >= 10

    def test_releases_end_with_an_unused_entry(self) -> None:
        packed = pack(problem_of([colocated(releases=(Release(1.0, 1, 2),)), colocated("v")], ask()), 1.0)
        at_s = packed.releases[:, :, layout.RELEASE_AT_S]
        assert at_s.tolist() == [[1.0, math.inf], [math.inf, math.inf]]
