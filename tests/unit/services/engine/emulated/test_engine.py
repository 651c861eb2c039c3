"""The engine in virtual time, where the duration of everything is known."""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from services.engine.emulated.config import EmulatedEngineConfig
from services.engine.emulated.engine import EmulatedEngine
from services.engine.kv.compatibility import Compatibility
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.protocol import (
    Engine,
    EngineDeadError,
    EngineRequest,
    EngineStartError,
    FinishReason,
    SamplingOptions,
)
from services.slo.performance import PerformanceModel, StepShape
from tests.support.virtual_time import elapsed_s, run_virtual, selector
from tests.unit.services.engine.emulated.emulated_support import (
    Recorder,
    prompt,
    running_engine,
    small_config,
    undisturbed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

SAMPLING = SamplingOptions(max_tokens=8, ignore_eos=True)
COMPATIBILITY = Compatibility("f", "emulated", "emulated", 4, 1, "1000 bytes a token", "emulated/1")
OTHER_ANNOUNCEMENT = {"announced_error": 3.0, "step_cap_s": 0.5}


def request(name: str, tokens: int = 10, export: bool = False, **sampling: Any) -> EngineRequest:
    return EngineRequest(name, prompt(tokens), 0, replace(SAMPLING, **sampling), export_kv=export)


def with_engine(
    story: Callable[[EmulatedEngine, Recorder], Coroutine[Any, Any, None]], **options: Any
) -> EmulatedEngineConfig:
    config = small_config(**options)

    async def run() -> None:
        async with running_engine(config) as (engine, recorder):
            await story(engine, recorder)

    run_virtual(run())
    return config


def test_facts() -> None:
    async def story() -> None:
        engine: Engine = EmulatedEngine(
            small_config(time_scale=0.5), model="m", model_fingerprint="abc", worker_id="w1"
        )
        facts = await engine.start()
        assert facts.emulated
        assert facts.compatibility.engine == "emulated/1"
        assert facts.compatibility.model_fingerprint == "abc"
        assert facts.compatibility.tensor_parallel == 1
        assert facts.performance.overhead_s == 0.005
        assert (facts.max_context_tokens, facts.kv_blocks_total, facts.eos_token_ids) == (200, 64, (2,))
        other: Engine = EmulatedEngine(small_config(), model="m", model_fingerprint="abc", worker_id="w1")
        assert (await other.start()).engine_epoch != facts.engine_epoch
        await other.shutdown()
        await engine.shutdown()

    run_virtual(story())


@pytest.mark.parametrize(("options", "error", "longest_s"), [({}, 1.0, math.inf), (OTHER_ANNOUNCEMENT, 3.0, 0.5)])
def test_what_an_engine_announces_of_its_steps(options: dict[str, float], error: float, longest_s: float) -> None:
    async def story() -> None:
        engine = EmulatedEngine(small_config(**options), model="m", model_fingerprint="f", worker_id="w")
        facts = await engine.start()
        assert PerformanceModel(facts.performance).decode_step_s(1, 10) == pytest.approx(error * 0.011)
        assert facts.max_step_s == longest_s
        await engine.shutdown()

    run_virtual(story())


def test_prompt_in_chunks_then_one_token_a_step() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("r", 70, max_tokens=3))
        await recorder.finished("r")
        assert [step.shape.prefill_tokens for step in recorder.steps] == [32, 32, 6, 0, 0]
        assert [step.shape.decode_context_tokens for step in recorder.steps] == [0, 0, 0, 70, 71]
        assert [len(step.outputs) for step in recorder.steps] == [1, 1, 1, 1, 1]
        assert [step.outputs[0].prefilled_tokens for step in recorder.steps] == [32, 64, 0, 0, 0]
        durations = [step.duration_s for step in recorder.steps]
        assert durations == pytest.approx([0.042, 0.042, 0.016, 0.011, 0.011])
        timings = recorder.outputs["r"][0].timings
        assert timings is not None
        assert (timings.wait_s, timings.run_s) == pytest.approx((0.0, 0.1))
        assert recorder.tokens("r") == undisturbed(config, prompt(70), replace(SAMPLING, max_tokens=3))[0]
        assert elapsed_s() == pytest.approx(0.122)

    config = small_config()
    with_engine(story)


def test_noise_is_around_the_model_and_time_scale_is_exact() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("r", 10, max_tokens=150))
        await recorder.finished("r")
        durations = [step.duration_s for step in recorder.steps[1:]]
        assert len(set(durations)) > 100
        assert sum(durations) / len(durations) == pytest.approx(0.0011, rel=0.05)

    with_engine(story, step_time_noise=0.2, time_scale=0.1)


def test_noise_never_makes_a_step_absurdly_short_or_long() -> None:
    engine = EmulatedEngine(small_config(step_time_noise=0.5), model="m", model_fingerprint="f", worker_id="w")
    one_token = StepShape(decode_requests=1, decode_tokens=1, decode_context_tokens=10)
    durations = [engine._duration_s(one_token) for _ in range(5000)]
    assert min(durations) == pytest.approx(0.1 * 0.011)
    assert max(durations) == pytest.approx((1 + 3 * 0.5) * 0.011)


@pytest.mark.parametrize(("late_s", "step_s"), [(0.0015, 0.011), (0.004, 0.015)])
def test_timers_that_are_a_little_late_do_not_slow_the_pace(late_s: float, step_s: float) -> None:
    """What is later than that is told as the step's duration: the machine is too busy."""

    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        selector(asyncio.get_running_loop()).late_s = late_s
        await engine.submit(request("r", 1, max_tokens=20))
        await recorder.finished("r")
        assert [step.duration_s for step in recorder.steps] == pytest.approx([step_s] * 20)
        assert 20 * step_s <= elapsed_s() <= 20 * step_s + 0.01

    with_engine(story)


def test_step_times_are_learnt_beginning_with_a_wrong_guess() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("r", 1, max_tokens=60))
        await recorder.finished("r")
        first, last = recorder.steps[0].scheduling, recorder.steps[-1].scheduling
        assert first.predicted_s == pytest.approx(1.5 * 0.011, rel=0.01)
        assert last.predicted_s == pytest.approx(0.011, rel=0.05)
        assert last.predicted_s <= last.bound_s
        assert all(step.scheduling.compose_s > 0 for step in recorder.steps)

    with_engine(story, first_guess=1.5)


def test_composing_is_timed_from_its_beginning_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(7000)

    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 4)
        monkeypatch.setattr("services.engine.emulated.pacing.time", clock)
        await engine.submit(request("r", 1, max_tokens=3))
        await recorder.finished("r")
        assert [step.scheduling.compose_s for step in recorder.steps] == [0.25] * 3

    with_engine(story)


def test_streams_that_sit_a_step_out_are_counted() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(replace(request("loose", 4, max_tokens=30), best_effort=True))
        await recorder.until(lambda: len(recorder.outputs["loose"]) > 2)
        await engine.submit(promised("tight", 120, 0.2, 0.03, 10))
        await recorder.finished("tight")
        held = [step.scheduling.held for step in recorder.steps]
        sat_out = sum("loose" not in {output.request_id for output in step.outputs} for step in recorder.steps[3:])
        assert held == sorted(held)
        assert 0 < held[-1] <= sat_out

    with_engine(story, per_token_s=0.002)


def test_requests_beyond_the_limit_wait() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        for name in ("a", "b", "c"):
            await engine.submit(request(name))
        await recorder.until(lambda: bool(recorder.steps))
        load = recorder.steps[0].load
        assert (load.running_requests, load.waiting_requests) == (2, 1)
        assert load.kv_blocks_used == 6
        await recorder.finished("c")
        assert recorder.outputs["c"][0].timings is not None
        assert recorder.outputs["c"][0].timings.wait_s == pytest.approx(0.03 + 7 * 0.012)

    with_engine(story, max_running_requests=2)


INVALID = {
    "empty prompt": EngineRequest("r", (), 0, SAMPLING),
    "nothing but output": EngineRequest("r", (100, 200), 2, SAMPLING),
    "more output than tokens": EngineRequest("r", (100, 200), 3, SAMPLING),
    "negative output": EngineRequest("r", (100, 200), -1, SAMPLING),
    "negative token id": EngineRequest("r", (100, -1), 0, SAMPLING),
    "token id of no token": EngineRequest("r", (100, 49_152), 0, SAMPLING),
    "context full": EngineRequest("r", prompt(200), 0, SAMPLING),
    "no token allowed": EngineRequest("r", (100,), 0, replace(SAMPLING, max_tokens=0)),
    "all tokens generated": EngineRequest("r", prompt(20), 8, SAMPLING),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_requests_are_rejected_and_the_next_is_served(name: str) -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(INVALID[name])
        await recorder.finished("r")
        assert recorder.rejected["r"].invalid
        await engine.submit(request("next"))
        await recorder.finished("next")

    with_engine(story)


def test_prompt_larger_than_all_blocks_and_id_in_use_are_rejected() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("large", 40))
        await engine.submit(request("twin"))
        await engine.submit(request("twin"))
        await recorder.until(lambda: len(recorder.rejected) == 2)
        assert "takes 40" in recorder.rejected["large"].detail
        assert "in use" in recorder.rejected["twin"].detail

    with_engine(story, kv_blocks=10)


def test_output_ends_where_the_blocks_do() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("r", 38, max_tokens=100))
        await recorder.finished("r")
        assert (len(recorder.tokens("r")), recorder.finish_reason("r")) == (2, FinishReason.LENGTH)

    with_engine(story, kv_blocks=10)


@pytest.mark.parametrize("aborted_at_s", [0.0, 0.005, 0.05, 0.06, 0.075])
def test_abort_is_the_last_event_and_frees_everything(aborted_at_s: float) -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("r", 40, max_tokens=100))
        await asyncio.sleep(aborted_at_s)
        await engine.abort("r")
        await engine.abort("r")
        await recorder.finished("r")
        assert recorder.finish_reason("r") is FinishReason.ABORT
        assert recorder.outputs["r"][-1].token_ids == ()
        steps = len(recorder.steps)
        await asyncio.sleep(10)
        assert len(recorder.steps) == steps
        assert engine.load().kv_blocks_used == engine.load().running_requests == engine.load().waiting_requests == 0

    with_engine(story)


def test_abort_of_a_waiting_request_does_not_wait_for_the_step() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("running"))
        await asyncio.sleep(0.001)
        await engine.submit(request("waiting"))
        await engine.abort("waiting")
        await engine.abort("unknown")
        await recorder.finished("waiting")
        assert elapsed_s() == pytest.approx(0.001)
        assert (recorder.steps[0].duration_s, recorder.steps[0].shape.tokens) == (0.0, 0)
        await recorder.finished("running")
        await engine.abort("running")
        assert recorder.finish_reason("running") is FinishReason.LENGTH

    with_engine(story)


def test_preemption_is_not_visible_in_the_tokens() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        for name, tokens in (("a", 12), ("b", 14), ("c", 9)):
            await engine.submit(request(name, tokens, max_tokens=20))
        for name in ("a", "b", "c"):
            await recorder.finished(name)
        recomputed = sum(step.shape.prefill_tokens for step in recorder.steps) - (12 + 14 + 9)
        assert recomputed > 9
        for name, tokens in (("a", 12), ("b", 14), ("c", 9)):
            expected = undisturbed(config, prompt(tokens), replace(SAMPLING, max_tokens=20))
            assert (recorder.tokens(name), recorder.finish_reason(name)) == expected
        assert engine.load().kv_blocks_used == 0

    config = small_config(kv_blocks=12)
    with_engine(story, kv_blocks=12)


def test_preempted_request_is_served_again_before_those_that_never_ran() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        for name, tokens in (("old", 12), ("young", 13), ("queued", 16)):
            await engine.submit(request(name, tokens))
        await recorder.finished("queued")
        order = [output.request_id for step in recorder.steps for output in step.outputs if output.finish_reason]
        assert order == ["old", "young", "queued"]
        assert sum(step.shape.prefill_tokens for step in recorder.steps) > 12 + 13 + 16

    with_engine(story, kv_blocks=8, policy="stock")


def test_export_ends_after_one_token_and_holds_the_blocks() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("p", 10, export=True))
        (output,) = await recorder.finished("p")
        assert (len(output.token_ids), output.finish_reason) == (1, FinishReason.LENGTH)
        handle = recorder.handle("p")
        assert (handle.tokens, handle.kv_bytes, handle.lease_remaining_s) == (10, 3 * 4 * 1000, 5.0)
        load = recorder.steps[-1].load
        assert load == engine.load()
        assert (load.kv_blocks_used, load.kv_blocks_leased, load.running_requests) == (3, 3, 0)
        await engine.release_kv(handle.lease_id)
        await engine.release_kv(handle.lease_id)
        await engine.release_kv("unknown")
        assert engine.load().kv_blocks_used == engine.load().kv_blocks_leased == 0
        assert await recorder.lease_closed(handle.lease_id) is LeaseOutcome.RELEASED

    with_engine(story)


def test_lease_expires() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("p", 10, export=True))
        await recorder.finished("p")
        exported_at_s = elapsed_s()
        assert await recorder.lease_closed(recorder.handle("p").lease_id) is LeaseOutcome.EXPIRED
        assert elapsed_s() - exported_at_s == pytest.approx(5.0)
        assert engine.load().kv_blocks_used == 0

    with_engine(story)


def test_request_waits_for_leased_blocks() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("p", 30, export=True))
        await recorder.finished("p")
        await engine.submit(request("q", 20))
        await asyncio.sleep(1)
        assert engine.load().waiting_requests == 1
        await engine.release_kv(recorder.handle("p").lease_id)
        await recorder.finished("q")

    with_engine(story, kv_blocks=10)


def test_export_that_needs_no_second_engine_leases_nothing() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("one", max_tokens=1, export=True))
        await engine.submit(request("stop", export=True, stop_token_ids=(first,)))
        await engine.submit(request("full", 199, export=True))
        assert (await recorder.finished("one"))[0].finish_reason is FinishReason.LENGTH
        assert (await recorder.finished("stop"))[0].finish_reason is FinishReason.STOP
        assert (await recorder.finished("full"))[0].finish_reason is FinishReason.LENGTH
        assert recorder.outputs["stop"][0].stop_token_id == first
        assert [recorder.outputs[name][0].kv for name in ("one", "stop", "full")] == [None, None, None]
        assert engine.load().kv_blocks_used == 0

    first = undisturbed(small_config(), prompt(10), SAMPLING)[0][0]
    with_engine(story)


def test_continuation_counts_what_was_generated() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(EngineRequest("r", (*prompt(10), *whole[:5]), 5, SAMPLING))
        await recorder.finished("r")
        assert recorder.tokens("r") == whole[5:]

    whole = undisturbed(small_config(), prompt(10), SAMPLING)[0]
    with_engine(story)


def test_idle_engine_does_not_wake() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("r"))
        await recorder.finished("r")
        selector = asyncio.get_running_loop().selector  # type: ignore[attr-defined]
        before = selector.calls
        await asyncio.sleep(1000)
        assert selector.calls - before <= 3

    with_engine(story)


def test_shutdown_ends_the_events_and_can_be_repeated() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("r", max_tokens=100))
        await asyncio.sleep(0.05)
        await engine.shutdown()
        await engine.shutdown()
        await recorder.task
        with pytest.raises(EngineDeadError):
            await engine.submit(request("late"))

    with_engine(story)


def test_defect_kills_the_engine_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        engine = EmulatedEngine(small_config(), model="m", model_fingerprint="f", worker_id="w")
        await engine.start()
        recorder = Recorder(engine)
        monkeypatch.setattr(engine._core, "complete_step", lambda plan, now_s: 1 / 0)
        await engine.submit(request("r"))
        with pytest.raises(EngineDeadError, match="ZeroDivisionError"):
            await recorder.task
        with pytest.raises(EngineDeadError):
            await engine.submit(request("late"))
        await engine.shutdown()

    run_virtual(story())


def test_defect_in_a_pull_kills_the_engine_and_ends_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        engine = EmulatedEngine(small_config(), model="m", model_fingerprint="f", worker_id="w")
        await engine.start()
        recorder = Recorder(engine)
        monkeypatch.setattr(engine._kv, "claim", lambda *arguments: 1 / 0)
        await engine.submit(request("other", max_tokens=50))
        handle = KvHandle("a", "w", "e", 5.0, 4, 4, COMPATIBILITY, "{}", "secret")
        await engine.submit(replace(request("r"), kv_source=handle))
        with pytest.raises(EngineDeadError, match="ZeroDivisionError"):
            await recorder.task
        steps = len(recorder.steps)
        await asyncio.sleep(10.0)
        assert engine._stepping is not None
        assert engine._stepping.cancelled()
        assert engine._events.empty()
        assert len(recorder.steps) == steps < 50
        await engine.shutdown()

    run_virtual(story())


def test_an_engine_that_was_shut_down_says_nothing_more() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(request("p", export=True))
        await recorder.finished("p")
        await engine.shutdown()
        await recorder.task
        await engine.release_kv(recorder.handle("p").lease_id)
        assert engine._events.empty()
        assert recorder.closed == {}

    with_engine(story)


def test_address_of_another_machine_fails_at_start() -> None:
    async def story() -> None:
        engine = EmulatedEngine(small_config(kv_host="192.0.2.1"), model="m", model_fingerprint="f", worker_id="w")
        with pytest.raises(EngineStartError, match="kv_host"):
            await engine.start()
        await engine.shutdown()

    run_virtual(story())


@pytest.mark.parametrize("options", [{"eos_token_id": 49_152}, {"special_tokens": 49_151}])
def test_vocabulary_without_room_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        small_config(**options)


def promised(name: str, tokens: int, deadline_in_s: float, tpot_s: float | None, max_tokens: int) -> EngineRequest:
    sampling = replace(SAMPLING, max_tokens=max_tokens)
    return EngineRequest(name, prompt(tokens), 0, sampling, deadline_in_s=deadline_in_s, tpot_s=tpot_s)


def gaps_s(recorder: Recorder, name: str) -> list[float]:
    now_s, came_s = 0.0, []
    for step in recorder.steps:
        now_s += step.duration_s
        came_s += [now_s for output in step.outputs if output.request_id == name]
    return [after - before for before, after in itertools.pairwise(came_s)]


@pytest.mark.parametrize(("policy", "longest_s"), [("slo", 0.05), ("stock", 0.15)])
def test_prompts_do_not_stall_promised_streams(policy: str, longest_s: float) -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(promised("stream", 8, 1.0, 0.03, 100))
        await recorder.until(lambda: len(recorder.outputs["stream"]) > 10)
        for index in range(3):
            await engine.submit(replace(request(f"p{index}", 150, max_tokens=1), best_effort=True))
        for name in ("stream", "p0", "p1", "p2"):
            await recorder.finished(name)
        longest = max(gaps_s(recorder, "stream"))
        assert (longest <= longest_s) == (policy == "slo")

    with_engine(story, policy=policy, max_step_tokens=512, kv_blocks=400)


def test_promised_prompt_overtakes_best_effort_that_came_before() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        for index in range(4):
            await engine.submit(replace(request(f"be{index}", 60, max_tokens=1), best_effort=True))
        await asyncio.sleep(0.001)
        await engine.submit(promised("p", 30, 0.2, None, 1))
        for name in ("p", "be3"):
            await recorder.finished(name)
        order = [output.request_id for step in recorder.steps for output in step.outputs]
        assert order.index("p") <= 1

    with_engine(story)


def test_best_effort_is_preempted_for_a_promise_without_a_trace_in_its_tokens() -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(replace(request("be", 20, max_tokens=30), best_effort=True))
        await recorder.until(lambda: len(recorder.outputs["be"]) > 5)
        await engine.submit(promised("p", 30, 0.2, 0.05, 5))
        for name in ("p", "be"):
            await recorder.finished(name)
        assert sum(step.shape.prefill_tokens for step in recorder.steps) > 20 + 30
        assert recorder.steps[-1].scheduling.preempted >= 1
        expected = undisturbed(config, prompt(20), replace(SAMPLING, max_tokens=30))
        assert (recorder.tokens("be"), recorder.finish_reason("be")) == expected

    config = small_config(kv_blocks=13)
    with_engine(story, kv_blocks=13)


def test_figures_that_make_no_sense_are_served_as_best_effort(caplog: pytest.LogCaptureFixture) -> None:
    async def story(engine: EmulatedEngine, recorder: Recorder) -> None:
        await engine.submit(promised("nan", 8, math.nan, 0.05, 3))
        await engine.submit(promised("zero", 8, 0.5, 0.0, 3))
        await engine.submit(promised("passed", 8, -5.0, 0.05, 3))
        for name in ("nan", "zero", "passed"):
            await recorder.finished(name)
        assert recorder.steps[-1].scheduling.contracts_malformed == 2

    with_engine(story)
    assert caplog.text.count("best effort") == 2


def test_recording_that_cannot_be_written_fails_at_start(tmp_path: Path) -> None:
    async def story() -> None:
        config = small_config(record_steps_in=tmp_path / "missing")
        engine = EmulatedEngine(config, model="m", model_fingerprint="f", worker_id="w")
        with pytest.raises(EngineStartError, match="record_steps_in"):
            await engine.start()
        await engine.shutdown()

    run_virtual(story())
