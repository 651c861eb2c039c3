"""Leases, aborts, hostile input and lost engines: never wrong text, never a held block, never a process left behind."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.engine.kv.compatibility import Compatibility
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.protocol import EngineDeadError, FinishReason, SamplingOptions
from tests.engine.conftest import engine_config
from tests.engine.vllm_harness import EngineHarness, LoopThread, Pair, greedy
from tests.support.eventually import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

TOKENS = 8
IDLE_S = 4.0
BUSY_WAITING = 0.1
"""Share of a core above which an engine does not sleep; in a loop it would take all that other work leaves it.
`slos-serve bench idle` measures what sleeping costs."""
_fresh = iter(range(28_000, 40_000, 150))


@pytest.fixture
def prompt(text: list[int]) -> list[int]:
    """100 tokens that no other test has sent: no engine has them in its prefix cache."""
    start = next(_fresh)
    return text[start : start + 100]


def assert_recomputed(pair: Pair, prompt: list[int], handle: KvHandle, reason: str) -> None:
    """The decode engine gives the right text without the KV cache, and says why."""
    expected = pair.prefill.generate(prompt, greedy(TOKENS)).tokens
    rest = pair.continue_with(prompt, expected[:1], greedy(TOKENS), handle)
    assert expected[:1] + rest.tokens == expected
    assert reason in rest.timings.kv_recompute_reason
    assert rest.timings.kv_pull is None


class TestLeases:
    def test_released_before_any_pull(self, pair: Pair, prompt: list[int]) -> None:
        handle = pair.export(prompt, greedy(TOKENS)).kv
        assert pair.prefill.engine.load().kv_blocks_leased == 4
        asked_at_s = time.monotonic()
        pair.prefill.release_kv(handle.lease_id)
        pair.prefill.wait_free(2.0)
        assert time.monotonic() - asked_at_s < 15.0, "long before the lease would have run out"
        assert pair.prefill.leases[handle.lease_id] is LeaseOutcome.RELEASED
        assert_recomputed(pair, prompt, handle, "the lease was released")

    def test_unknown_lease_is_ignored(self, pair: Pair, prompt: list[int]) -> None:
        pair.prefill.release_kv("nobody's")
        assert len(pair.prefill.generate(prompt, greedy(2)).tokens) == 2

    def test_pulled_lease_is_reported(self, pair: Pair, prompt: list[int]) -> None:
        handle = pair.export(prompt, greedy(TOKENS)).kv
        pair.continue_with(prompt, [5], greedy(TOKENS), handle)
        wait_until(lambda: handle.lease_id in pair.prefill.leases, "the lease to close")
        assert pair.prefill.leases[handle.lease_id] is LeaseOutcome.PULLED

    def test_second_pull_is_refused(self, pair: Pair, prompt: list[int]) -> None:
        handle = pair.export(prompt, greedy(TOKENS)).kv
        # Another continuation of the same prompt, so that the prefix cache of the decode engine is of no help.
        pair.continue_with(prompt, [5], greedy(2), handle)
        rest = pair.continue_with(prompt, [7], greedy(TOKENS), handle)
        expected = pair.prefill.generate([*prompt, 7], greedy(TOKENS), generated_tokens=1).tokens
        assert rest.tokens == expected
        assert rest.timings.kv_recompute_reason != ""

    def test_expired_at_the_producer(
        self, lone: EngineHarness, decode: EngineHarness, pair: Pair, prompt: list[int]
    ) -> None:
        short = Pair(lone, decode)
        handle = short.export(prompt, greedy(TOKENS)).kv
        wait_until(lambda: handle.lease_id in lone.leases, "the lease to run out", 20.0)
        assert lone.leases[handle.lease_id] is LeaseOutcome.EXPIRED
        lone.wait_free()
        # A handle that claims to be good still.
        assert_recomputed(short, prompt, replace(handle, lease_remaining_s=30.0), "the lease has expired")

    def test_expired_on_the_way(self, pair: Pair, prompt: list[int]) -> None:
        handle = pair.export(prompt, greedy(TOKENS)).kv
        assert_recomputed(pair, prompt, replace(handle, lease_remaining_s=0.3), "0.300 s left")
        pair.prefill.release_kv(handle.lease_id)
        pair.prefill.wait_free()

    @pytest.mark.parametrize("remaining_s", [math.nan, -1.0])
    def test_nonsense_duration(self, pair: Pair, prompt: list[int], remaining_s: float) -> None:
        handle = pair.export(prompt, greedy(TOKENS)).kv
        assert_recomputed(pair, prompt, replace(handle, lease_remaining_s=remaining_s), "s left")
        pair.prefill.release_kv(handle.lease_id)

    def test_runs_out_while_the_decode_engine_is_busy(self, pair: Pair, prompt: list[int], text: list[int]) -> None:
        first = pair.export(prompt, greedy(TOKENS))
        busy = pair.decode.submit(text[:2048], greedy(2))
        wait_until(
            lambda: pair.decode.engine.load().running_requests > 0 or bool(pair.decode.answers[busy].outputs), ""
        )
        time.sleep(0.2)
        late = pair.continue_with(prompt, first.tokens, greedy(TOKENS), replace(first.kv, lease_remaining_s=0.65))
        pair.decode.wait(busy)
        expected = pair.prefill.generate(prompt, greedy(TOKENS)).tokens
        assert first.tokens + late.tokens == expected
        assert "ran out" in late.timings.kv_recompute_reason or late.timings.kv_pull is not None
        pair.prefill.wait_free()

    def test_first_token_that_ends_the_output_leaves_no_lease(self, pair: Pair, prompt: list[int]) -> None:
        token = pair.prefill.generate(prompt, greedy(1)).tokens[0]
        answer = pair.prefill.generate(prompt, greedy(TOKENS, stop_token_ids=(token,)), export_kv=True)
        assert (answer.finish_reason, answer.outputs[-1].stop_token_id) == (FinishReason.STOP, token)
        assert answer.outputs[-1].kv is None
        only = pair.prefill.generate(prompt, greedy(1), export_kv=True)
        assert (only.finish_reason, only.outputs[-1].kv) == (FinishReason.LENGTH, None)
        pair.prefill.wait_free()


@pytest.mark.parametrize(
    ("name", "value"),
    [("block_tokens", 64), ("dtype", "bfloat16"), ("model_fingerprint", "another"), ("engine", "vllm 0.33.0")],
)
def test_another_kind_of_engine(pair: Pair, prompt: list[int], name: str, value: Any) -> None:
    handle = pair.export(prompt, greedy(TOKENS)).kv
    other: Compatibility = replace(handle.compatibility, **{name: value})
    assert_recomputed(pair, prompt, replace(handle, compatibility=other), name)
    pair.prefill.release_kv(handle.lease_id)
    pair.prefill.wait_free()


@pytest.mark.parametrize("address", ["", "{}", "[1]", '{"host": 1, "port": "x"}', '{"host": "127.0.0.1", "port": 1}'])
def test_handle_that_leads_nowhere(pair: Pair, prompt: list[int], address: str) -> None:
    handle = pair.export(prompt, greedy(TOKENS)).kv
    assert_recomputed(pair, prompt, replace(handle, transfer_params_json=address), "")
    pair.prefill.release_kv(handle.lease_id)
    pair.prefill.wait_free()


def test_handle_of_another_prompt(pair: Pair, prompt: list[int], text: list[int]) -> None:
    handle = pair.export(text[200:300], greedy(TOKENS)).kv
    assert_recomputed(pair, prompt, handle, "another prompt")
    pair.prefill.wait_free()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("remote_block_ids", [[]]),
        ("remote_block_ids", [[1]]),
        ("remote_block_ids", [[1, 2], [3, 4]]),
        ("remote_block_ids", "all"),
        ("remote_block_ids", None),
        ("remote_num_tokens", 10_000),
        ("remote_num_tokens", -5),
        ("remote_engine_id", 7),
        ("remote_port", "5600"),
        ("tp_size", None),
    ],
)
def test_producer_that_talks_nonsense(pair: Pair, prompt: list[int], field: str, value: Any) -> None:
    handle = pair.export(prompt, greedy(TOKENS)).kv
    kv = pair.prefill.engine._kv
    assert kv is not None
    lease = kv._leases._open[handle.lease_id]
    lease.offer = replace(lease.offer, params={**lease.offer.params, field: value})
    rest = pair.continue_with(prompt, [5], greedy(TOKENS), handle)
    assert rest.timings.kv_recompute_reason != ""
    assert rest.tokens == pair.prefill.generate([*prompt, 5], greedy(TOKENS), generated_tokens=1).tokens
    pair.prefill.wait_free()


class TestAborts:
    def test_while_prefilling(self, prefill: EngineHarness, text: list[int]) -> None:
        request = prefill.submit(text[9_000:12_900], greedy(4), export_kv=True)
        wait_until(lambda: prefill.engine.load().running_requests > 0 or prefill.answers[request].ended, "a start")
        prefill.abort(request)
        assert prefill.wait(request).finish_reason is FinishReason.ABORT
        prefill.wait_free()

    def test_between_prefill_and_pull(self, pair: Pair, prompt: list[int]) -> None:
        handle = pair.export(prompt, greedy(TOKENS)).kv
        request = pair.decode.submit([*prompt, 5], greedy(TOKENS), generated_tokens=1, kv_source=handle)
        pair.decode.abort(request)
        assert pair.decode.wait(request).finish_reason in {FinishReason.ABORT, FinishReason.LENGTH}
        pair.decode.wait_free()
        pair.prefill.wait_free()

    def test_while_decoding(self, pair: Pair, prompt: list[int]) -> None:
        handle = pair.export(prompt, greedy(500)).kv
        request = pair.decode.submit([*prompt, 5], greedy(500, ignore_eos=True), generated_tokens=1, kv_source=handle)
        wait_until(lambda: len(pair.decode.answers[request].tokens) >= 3, "some tokens")
        pair.decode.abort(request)
        assert pair.decode.wait(request).finish_reason is FinishReason.ABORT
        pair.decode.wait_free()
        pair.prefill.wait_free()

    def test_while_waiting(self, lone: EngineHarness, text: list[int]) -> None:
        requests = [lone.submit(text[i : i + 600], greedy(4)) for i in range(13_000, 15_000, 500)]
        lone.abort(requests[-1])
        assert lone.wait(requests[-1]).finish_reason is FinishReason.ABORT
        for request in requests[:-1]:
            assert lone.wait(request).finish_reason is FinishReason.LENGTH
        lone.wait_free()

    def test_unknown_and_finished_are_ignored(self, lone: EngineHarness, prompt: list[int]) -> None:
        lone.abort("nobody's")
        request = lone.submit(prompt, greedy(2))
        lone.wait(request)
        lone.abort(request)
        assert lone.generate(prompt, greedy(2)).finish_reason is FinishReason.LENGTH
        assert lone.answers[request].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("token_ids", "sampling", "field"),
    [
        ([], greedy(4), "token_ids"),
        ([1] * 4096, greedy(4), "token_ids"),
        ([1, 49152], greedy(4), "49152"),
        ([1, -1], greedy(4), "-1"),
        ([1, 2**40], greedy(4), str(2**40)),
        ([1, 2], greedy(0), "max_tokens"),
        ([1, 2], SamplingOptions(4, temperature=math.nan), "temperature"),
        ([1, 2], SamplingOptions(4, temperature=-1.0), "temperature"),
        ([1, 2], SamplingOptions(4, top_p=0.0), "top_p"),
        ([1, 2], SamplingOptions(4, top_k=-7), "top_k"),
        ([1, 2], SamplingOptions(4, repetition_penalty=0.0), "repetition_penalty"),
        ([1, 2], SamplingOptions(4, presence_penalty=math.inf), "presence_penalty"),
        ([1, 2], SamplingOptions(4, stop_token_ids=(99_999,)), "stop_token_ids"),
        ([1, 2], SamplingOptions(4, logit_bias={99_999: 1.0}), "logit_bias"),
        ([1, 2], SamplingOptions(4, logit_bias={5: math.nan}), "logit_bias"),
        ([1, 2], SamplingOptions(4, logprobs=10_000), "logprobs"),
        ([1, 2], SamplingOptions(4, seed=2**70), "seed"),
    ],
)
def test_bad_input_is_refused(
    decode: EngineHarness, token_ids: list[int], sampling: SamplingOptions, field: str
) -> None:
    answer = decode.generate(token_ids, sampling)
    assert answer.rejected is not None
    assert answer.rejected.invalid
    assert field in answer.rejected.detail
    assert len(decode.generate([1, 2, 3], greedy(2, ignore_eos=True)).tokens) == 2


def test_request_id_in_use(decode: EngineHarness, prompt: list[int]) -> None:
    request = decode.submit(prompt, greedy(20, ignore_eos=True), request_id="twice")
    decode.submit(prompt, greedy(20), request_id="twice")
    wait_until(lambda: decode.answers[request].rejected is not None, "a refusal")
    wait_until(lambda: decode.answers[request].finish_reason is not None, "the first one's end")
    decode.answers.pop("twice")
    assert decode.generate(prompt, greedy(2), request_id="twice").finish_reason is FinishReason.LENGTH


def test_idle_engines_leave_the_cpu_alone(pair: Pair) -> None:
    pair.prefill.wait_free()
    pair.decode.wait_free()
    processes = {"front-end of both": psutil.Process()}
    for name, harness in (("prefill", pair.prefill), ("decode", pair.decode)):
        processes |= {f"{name} EngineCore {pid}": psutil.Process(pid) for pid in harness.core_pids()}
    time.sleep(1.5)
    before = {name: process.cpu_times() for name, process in processes.items()}
    time.sleep(IDLE_S)
    for name, process in processes.items():
        used = process.cpu_times()
        share = (used.user + used.system - before[name].user - before[name].system) / IDLE_S
        print(f"{name}: {share:.2%} of a core, {process.memory_info().rss / 2**20:.0f} MiB")
        assert share < BUSY_WAITING, name
    for harness in (pair.prefill, pair.decode):
        for pid in harness.core_pids():
            threads = [path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")]
            assert threads.count("gloo_tcp_loop") <= 2, "every Gloo group of one process is the same"


@pytest.fixture
def worker(model_dir: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a prefill engine in it; its lines of output are JSON."""
    program = Path(__file__).with_name("vllm_worker_process.py")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, str(program), str(model_dir)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    ) as process:
        yield process
        process.kill()


def test_killed_worker_leaves_nothing_behind(pair: Pair, worker: subprocess.Popen[str], prompt: list[int]) -> None:
    assert worker.stdout is not None
    assert worker.stdin is not None
    assert json.loads(worker.stdout.readline()) == "ready"
    worker.stdin.write(json.dumps(prompt) + "\n")
    worker.stdin.flush()
    told = json.loads(worker.stdout.readline())
    handle = KvHandle(**{**told, "compatibility": Compatibility(**told["compatibility"])})
    family = psutil.Process(worker.pid).children(recursive=True)
    assert any("EngineCore" in process.name() or "python" in process.name() for process in family)

    worker.send_signal(signal.SIGKILL)

    _, alive = psutil.wait_procs(family, timeout=10.0)
    assert [process.cmdline() for process in alive] == []
    assert_recomputed(pair, prompt, handle, "cannot be reached")


def test_dead_engine_says_so(loop: LoopThread, model_dir: Path, decode: EngineHarness, prompt: list[int]) -> None:
    config = engine_config(0, kv_cache_bytes=400 * 2**20, warm_up=False)
    victim = EngineHarness(loop, model_dir, config, "victim")
    try:
        pair = Pair(victim, decode)
        expected = victim.generate(prompt, greedy(TOKENS)).tokens
        handle = pair.export(prompt, greedy(TOKENS)).kv
        (core,) = victim.core_pids()
        os.kill(core, signal.SIGKILL)
        wait_until(lambda: victim.died is not None, "EngineDeadError")
        with pytest.raises(EngineDeadError):
            victim.submit(prompt, greedy(2))
        rest = pair.continue_with(prompt, expected[:1], greedy(TOKENS), handle)
        assert expected[:1] + rest.tokens == expected
        assert rest.timings.kv_recompute_reason != ""
    finally:
        began_at_s = time.monotonic()
        victim.shutdown()
        assert time.monotonic() - began_at_s < 60.0
    assert not psutil.pid_exists(core) or psutil.Process(core).status() == psutil.STATUS_ZOMBIE
