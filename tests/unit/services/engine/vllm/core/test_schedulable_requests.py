"""vLLM's requests as the composer is told of them, in every state that they can be in."""

from __future__ import annotations

import enum
import math
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from services.engine.protocol import EngineRequest, SamplingOptions
from services.engine.vllm.core.schedulable_requests import SchedulableRequests, WaitingStates
from services.engine.vllm.shared.carried_output import CARRIED_KEY
from services.engine.vllm.shared.contracts import CONTRACT_KEY, contract_to_wire
from services.slo.composer import SchedulableRequest

NOW_S = 5000.0
BLOCK_TOKENS = 32


class Status(enum.Enum):
    """Stands for vLLM's `RequestStatus`."""

    WAITING = 1
    PREEMPTED = 2
    WAITING_FOR_REMOTE_KVS = 3
    WAITING_FOR_GRAMMAR = 4
    RUNNING = 5


@dataclass
class Request:
    """Stands for a request of vLLM, with the fields that are read of it."""

    request_id: str = "r"
    num_tokens: int = 100
    max_tokens: int = 20
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    spec_token_ids: list[int] = field(default_factory=list)
    is_prefill_chunk: bool = False
    kv_transfer_params: dict[str, Any] | None = None
    sampling_params: Any = None


class Scheduler:
    """Stands for vLLM's scheduler, with the queues that are read of it."""

    def __init__(self, cached_tokens: int = 0) -> None:
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.kv_holding_waiting: list[Request] = []
        self.finished_recving_kv_req_ids: set[str] = set()
        self.lookups = 0
        self.kv_cache_manager = SimpleNamespace(get_computed_blocks=self._computed_blocks)
        self._cached_tokens = cached_tokens

    def _computed_blocks(self, request: Request) -> tuple[None, int]:
        self.lookups += 1
        return None, self._cached_tokens


def requests(counts: Counter[str] | None = None) -> Any:
    states = WaitingStates(Status.WAITING, Status.PREEMPTED, Status.WAITING_FOR_REMOTE_KVS)
    return SchedulableRequests(BLOCK_TOKENS, states, Counter() if counts is None else counts)


def promised(request: Request, carried: int = 0, **promise: Any) -> Request:
    """The request with a contract as the front end writes it."""
    asked = EngineRequest(request.request_id, (1,), 0, SamplingOptions(max_tokens=4), **promise)
    extra = {CONTRACT_KEY: contract_to_wire(asked, NOW_S), CARRIED_KEY: carried}
    request.sampling_params = SimpleNamespace(extra_args=extra)
    return request


def seen(book: Any, scheduler: Scheduler) -> SchedulableRequest:
    (found,) = book.brought_up_to_date(scheduler)
    assert isinstance(found, SchedulableRequest)
    return found


def test_a_new_request_waits_with_what_it_was_promised() -> None:
    book, scheduler = requests(), Scheduler()
    request = promised(Request(), deadline_in_s=2.0, tpot_s=0.05, application="chat")
    book.begin(request, NOW_S + 0.5)
    scheduler.waiting.append(request)
    found = seen(book, scheduler)
    assert (found.computed_tokens, found.pending_tokens, found.held_blocks) == (0, 100, 0)
    assert (found.running, found.decoding, found.pulls_kv, found.pinned, found.best_effort) == (False,) * 5
    assert (found.due_s, found.tpot_s, found.waiting_since_s) == (NOW_S + 2.0, 0.05, NOW_S + 0.5)
    assert (book.due_s("r"), book.tpot_s("r"), book.application("r")) == (NOW_S + 2.0, 0.05, "chat")
    assert (book.best_effort("r"), book.pending_tokens("r")) == (False, 100)


def test_a_request_without_a_contract_is_best_effort_and_counted() -> None:
    counts: Counter[str] = Counter()
    book = requests(counts)
    book.begin(Request("a"), NOW_S)
    book.begin(Request("b", sampling_params=SimpleNamespace(extra_args=None)), NOW_S)
    assert book.best_effort("a")
    assert book.best_effort("b")
    assert counts == {"contracts_missing": 2}


def test_a_contract_that_makes_no_sense_is_best_effort_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    book = requests(counts)
    book.begin(promised(Request(), tpot_s=-1.0), NOW_S)
    assert book.best_effort("r")
    assert book.due_s("r") == math.inf
    assert counts == {"contracts_malformed": 1}
    assert "request r is treated as best effort" in caplog.text


def test_best_effort_with_targets_stays_best_effort() -> None:
    book = requests()
    book.begin(promised(Request(), deadline_in_s=1.0, tpot_s=0.1, best_effort=True), NOW_S)
    assert book.best_effort("r")
    assert book.tpot_s("r") == 0.1


def test_a_request_that_ends_with_its_first_token_has_no_rate_here() -> None:
    book = requests()
    book.begin(promised(Request(max_tokens=1), deadline_in_s=1.0, tpot_s=0.05), NOW_S)
    assert book.tpot_s("r") == math.inf
    assert book.due_s("r") == NOW_S + 1.0


def test_what_the_prefix_cache_holds_need_not_be_computed_and_is_looked_for_once() -> None:
    book, scheduler = requests(), Scheduler(cached_tokens=64)
    request = Request()
    book.begin(request, NOW_S)
    scheduler.waiting.append(request)
    for _ in range(3):
        found = seen(book, scheduler)
        assert (found.computed_tokens, found.pending_tokens) == (64, 36)
    assert scheduler.lookups == 1


def test_the_prefix_cache_is_asked_again_after_a_preemption() -> None:
    book, scheduler = requests(), Scheduler(cached_tokens=64)
    request = Request()
    book.begin(request, NOW_S)
    scheduler.waiting.append(request)
    seen(book, scheduler)
    scheduler.running.append(scheduler.waiting.pop())
    seen(book, scheduler)
    request.status = Status.PREEMPTED
    scheduler.waiting.append(scheduler.running.pop())
    assert not seen(book, scheduler).running
    assert scheduler.lookups == 2


def test_one_token_is_left_to_compute_where_everything_is_cached() -> None:
    book, scheduler = requests(), Scheduler(cached_tokens=128)
    request = Request()
    book.begin(request, NOW_S)
    scheduler.waiting.append(request)
    found = seen(book, scheduler)
    assert (found.computed_tokens, found.pending_tokens) == (99, 1)


@pytest.mark.parametrize(("remote", "cached", "computed"), [(96, 32, 96), (32, 64, 64), (100, 0, 99)])
def test_a_request_that_will_pull_counts_what_comes(remote: int, cached: int, computed: int) -> None:
    book, scheduler = requests(), Scheduler(cached_tokens=cached)
    request = Request(kv_transfer_params={"do_remote_prefill": True, "remote_num_tokens": remote})
    book.begin(request, NOW_S)
    scheduler.waiting.append(request)
    found = seen(book, scheduler)
    assert (found.pulls_kv, found.computed_tokens, found.pending_tokens) == (True, computed, 100 - computed)
    assert not found.running


def test_a_pull_that_was_refused_is_a_prompt_like_any_other() -> None:
    book, scheduler = requests(), Scheduler()
    request = Request(kv_transfer_params={"do_remote_prefill": False, "remote_num_tokens": 96})
    book.begin(request, NOW_S)
    scheduler.waiting.append(request)
    found = seen(book, scheduler)
    assert (found.pulls_kv, found.computed_tokens, found.pending_tokens) == (False, 0, 100)


def test_a_kv_cache_on_its_way_holds_blocks_that_nobody_may_take() -> None:
    book, scheduler = requests(), Scheduler()
    request = Request(status=Status.WAITING_FOR_REMOTE_KVS, num_computed_tokens=99)
    book.begin(request, NOW_S)
    scheduler.kv_holding_waiting.append(request)
    found = seen(book, scheduler)
    assert found.running
    assert found.pinned
    assert found.pulls_kv
    assert not found.decoding
    assert (found.computed_tokens, found.pending_tokens, found.held_blocks) == (99, 1, 4)


def test_a_kv_cache_that_has_landed_can_run() -> None:
    book, scheduler = requests(), Scheduler()
    request = Request(status=Status.WAITING_FOR_REMOTE_KVS, num_computed_tokens=100)
    book.begin(request, NOW_S)
    scheduler.kv_holding_waiting.append(request)
    scheduler.finished_recving_kv_req_ids.add("r")
    found = seen(book, scheduler)
    assert not found.pulls_kv
    assert (found.running, found.computed_tokens, found.pending_tokens, found.held_blocks) == (True, 99, 1, 4)


def test_a_running_prompt_and_a_running_stream() -> None:
    book, scheduler = requests(), Scheduler()
    request = Request(status=Status.RUNNING, num_computed_tokens=33, is_prefill_chunk=True)
    book.begin(request, NOW_S)
    scheduler.running.append(request)
    found = seen(book, scheduler)
    assert (found.running, found.decoding, found.pinned, found.pulls_kv) == (True, False, False, False)
    assert (found.computed_tokens, found.pending_tokens, found.held_blocks, found.draft_tokens) == (33, 67, 2, 0)
    request.num_computed_tokens, request.num_tokens, request.is_prefill_chunk = 103, 104, False
    request.spec_token_ids = [7, 8, 9]
    found = seen(book, scheduler)
    assert (found.decoding, found.computed_tokens, found.pending_tokens, found.draft_tokens) == (True, 103, 1, 3)


def test_tokens_of_the_step_under_way_count_as_made() -> None:
    book, scheduler = requests(), Scheduler()
    request = promised(Request(status=Status.RUNNING), carried=1, deadline_in_s=1.0, tpot_s=0.25)
    book.begin(request, NOW_S)
    scheduler.running.append(request)
    request.num_computed_tokens, request.num_output_placeholders = 101, 1
    found = seen(book, scheduler)
    assert found.due_s == NOW_S + 1.25
    assert found.pending_tokens == 1
    request.num_computed_tokens = 90
    assert seen(book, scheduler).pending_tokens == 11


def test_due_times_move_on_with_tokens() -> None:
    book = requests()
    book.begin(promised(Request(), carried=1, deadline_in_s=1.0, tpot_s=0.25), NOW_S)
    book.note_tokens("r", 2, NOW_S + 0.5)
    assert book.due_s("r") == NOW_S + 1.5
    book.note_tokens("ended meanwhile", 2, NOW_S + 0.5)


def test_a_request_that_vllm_passes_over_is_not_offered() -> None:
    book, scheduler = requests(), Scheduler()
    for queue in (scheduler.waiting, scheduler.kv_holding_waiting):
        request = Request(str(id(queue)), status=Status.WAITING_FOR_GRAMMAR)
        book.begin(request, NOW_S)
        queue.append(request)
    assert book.brought_up_to_date(scheduler) == []


def test_the_running_come_first_then_what_lands_then_what_waits() -> None:
    book, scheduler = requests(), Scheduler()
    for name, queue in (
        ("w", scheduler.waiting),
        ("l", scheduler.kv_holding_waiting),
        ("r", scheduler.running),
    ):
        request = Request(name)
        book.begin(request, NOW_S)
        queue.append(request)
    assert [found.request_id for found in book.brought_up_to_date(scheduler)] == ["r", "l", "w"]


def test_an_ended_request_promises_nothing() -> None:
    book = requests()
    book.begin(promised(Request(), deadline_in_s=1.0, tpot_s=0.25), NOW_S)
    book.end("r")
    book.end("r")
    assert (book.due_s("r"), book.tpot_s("r")) == (math.inf, math.inf)
