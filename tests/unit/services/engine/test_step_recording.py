"""Steps written down by an engine are composed again."""

from __future__ import annotations

import asyncio
import copy
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.protocol import EngineRequest, SamplingOptions
from services.engine.step_recording import RecordingError, StepRecorder, read_steps
from services.slo.composer import ComposerPolicy, Limits, SchedulableRequest, compose
from services.slo.composer.recorded_step import ComposedStep
from services.slo.performance import PerformanceModel, StepShape
from tests.support.virtual_time import run_virtual
from tests.unit.services.engine.emulated.emulated_support import prompt, running_engine, small_config
from tests.unit.services.slo.composer.works import limits, models, policies, work_lists


def test_steps_of_an_engine_come_out_the_same(tmp_path: Path) -> None:
    async def story() -> None:
        config = small_config(record_steps_in=tmp_path, kv_blocks=40, step_time_noise=0.1)
        async with running_engine(config) as (engine, recorder):
            for index in range(8):
                sampling = SamplingOptions(max_tokens=12, temperature=0.0, ignore_eos=True)
                promised = index % 2 == 0
                await engine.submit(
                    EngineRequest(
                        f"r{index}",
                        prompt(10 + 7 * index, index),
                        0,
                        sampling,
                        deadline_in_s=0.4 if promised else None,
                        tpot_s=0.05 if promised else None,
                        best_effort=not promised,
                    )
                )
                await asyncio.sleep(0.05)
            for index in range(8):
                await recorder.finished(f"r{index}")
            reported.extend((step.shape, step.duration_s) for step in recorder.steps)

    reported: list[tuple[StepShape, float]] = []
    run_virtual(story())
    recorded = list(read_steps(tmp_path / "w.jsonl"))
    assert [(each.step.composition.shape, each.took_s) for each in recorded] == reported
    steps = [each.step for each in recorded]
    assert any(step.composition.preempted for step in steps)
    assert any(step.composition.limit_s < math.inf for step in steps)
    for step in steps:
        assert step.again() == step.composition


@settings(max_examples=100)
@given(work_lists(), st.integers(0, 40), models(), limits, policies)
def test_whatever_was_composed_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    works: list[SchedulableRequest],
    free_blocks: int,
    model: PerformanceModel,
    limits: Limits,
    policy: ComposerPolicy,
) -> None:
    path = tmp_path_factory.getbasetemp() / "steps.jsonl"
    composition = compose(works, free_blocks, model, limits, 7.0, policy)
    before = [copy.copy(w) for w in works]
    with StepRecorder(path) as recorder:
        recorder.end(0.0)
        recorder.begin(ComposedStep(works, free_blocks, model, limits, policy, 7.0, composition))
        for w in works:
            w.computed_tokens += 1
        recorder.end(0.125)
        recorder.end(0.25)
    (recorded,) = read_steps(path)
    step = recorded.step
    assert recorded.took_s == 0.125
    assert list(map(repr, step.work)) == list(map(repr, before)), "requests change while the step runs"
    assert (step.free_blocks, step.limits, step.policy, step.now_s) == (free_blocks, limits, policy, 7.0)
    assert step.model == model
    assert step.composition == composition == step.again()


@pytest.mark.parametrize(
    "text", ["", "{", "[]\n", '{"format": 1}\n', '{"format": 2}\n{"work": []}\n', '{"format": 2}\nnull\n']
)
def test_a_file_that_is_no_recording_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordingError, match="line 1" if text.count("\n") < 2 else "line 2"):
        list(read_steps(path))
