"""The front end decides what happens to a call before and around its stream: tested without processes or gRPC."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from opentelemetry.sdk.resources import Resource

from router.admission.quota_accounts import QuotaCharges, TenantAccounts
from router.admission.quota_desk import QuotaDesk
from router.admission.refusals import unservable_arrival_error
from router.admission.undecided import UndecidedRequest
from router.api import frontend as module
from router.api.frontend import Frontend
from router.api.parsing import Limits
from router.requests.events import Refusal, RequestEvents, RequestObserver
from router.requests.live_request import LiveRequest
from router.requests.output_coalescer import OutputCoalescer
from services.config.tenants import TenantSettings
from services.identity.cache_salts import NO_SALTS
from services.identity.principal import Principal, Role
from services.model.prompt_threads import PromptThreads
from services.model.tokenizer import Tokenizer
from services.rpc.caller import act_for
from services.rpc.errors import NO_WORKERS, EngineFailureError, OverloadedError, RequestError, UnknownRequestError
from services.slo.admission import Assessment, Unservable
from services.slo.contract import Contract, ProfileBook
from services.state.connection import StateUnavailableError
from services.state.quotas import SharedQuotas
from services.telemetry.traces import Traces
from slos_serve.errors import QuotaExceededError, error_of
from slos_serve.v1 import contract_pb2, inference_pb2, sampling_pb2
from tests.support.tiny_model import MAX_CONTEXT_TOKENS, VOCABULARY_SIZE
from tests.unit.router.router_support import Desk
from tests.unit.services.state.memory_redis import MemoryRedis

EASY = contract_pb2.Contract(stages=[contract_pb2.Stage(prefill=contract_pb2.PrefillStage(ttft_s=60.0))])
IMPOSSIBLE = contract_pb2.Contract(
    stages=[contract_pb2.Stage(prefill=contract_pb2.PrefillStage(ttft_s=1e-5))],
    on_overload=contract_pb2.ON_OVERLOAD_REFUSE,
)
FINISHED = inference_pb2.GenerateResponse(
    finished=inference_pb2.Finished(reason=sampling_pb2.FINISH_REASON_STOP, completion_tokens=2)
)


class AbortedError(Exception):
    def __init__(self, code: grpc.StatusCode, detail: str, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.metadata = dict(metadata)


@dataclass
class Call:
    """The server's side of one call."""

    metadata: tuple[tuple[str, str | bytes], ...] = ()
    trailing: dict[str, str] = field(default_factory=dict)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:40000"

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.metadata

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.trailing = dict(metadata)

    async def abort(self, code: grpc.StatusCode, detail: str, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        raise AbortedError(code, detail, metadata)


@dataclass
class Accounts(RequestObserver):
    received: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    admitted: list[LiveRequest] = field(default_factory=list)

    def on_received(self) -> None:
        self.received += 1

    def on_refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def on_admitted(self, request: LiveRequest) -> None:
        self.admitted.append(request)


@dataclass
class Router:
    """Everything behind the front end. The clock starts late, and stands still unless a test moves it."""

    desk: Desk
    now_s: float = 5_000.0
    held: int = 0
    queued: int = 0
    redis: bool = True
    taken_ids: set[str] = field(default_factory=set)
    """Ids that another router has reserved."""
    tracked: list[str] = field(default_factory=list)
    reserved: list[str] = field(default_factory=list)
    accepted: list[LiveRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    accounts: Accounts = field(default_factory=Accounts)
    arrivals: list[UndecidedRequest] = field(default_factory=list)
    decided_after: Callable[[], None] = lambda: None
    """What happens between the admission of a request and the answer to its front end."""
    refusal: RequestError | None = None
    states: int = 0
    tenants: dict[str, TenantSettings] = field(default_factory=dict)
    """Options of tenants, whose quotas are kept without Redis."""

    def frontend(self, **options: Any) -> Frontend:
        defaults: dict[str, Any] = {
            "router_id": "router-1",
            "tokenizer": Tokenizer(self.desk.model_dir),
            "profiles": ProfileBook({"slow": Contract()}),
            "prompt_threads": PromptThreads(),
            "limits": Limits(
                "m", VOCABULARY_SIZE, MAX_CONTEXT_TOKENS, default_max_tokens=20, max_prompt_characters=10**6
            ),
            "cache_salts": NO_SALTS,
            "admission_loop": self,
            "quotas": self.quota_desk(),
            "queue": SimpleNamespace(accept=self.accepted.append),
            "dispatcher": SimpleNamespace(left=lambda request: self.cancelled.append(request.request_id)),
            "cluster": self.desk.cluster,
            "requests": SimpleNamespace(queued_count=lambda: self.queued),
            "events": RequestEvents(self.accounts),
            "journal": self,
            "cancelling": self,
            "state": SimpleNamespace(connected=self.redis, url="redis://here"),
            "coalescer": OutputCoalescer(),
            "reporter": self,
            "max_message_bytes": 10_000,
            "max_queued_requests": 10,
            "no_worker_patience_s": 4.0,
            "clock": lambda: self.now_s,
            "traces": Traces(Resource.get_empty(), 0.0, None),
        }
        return Frontend(**{**defaults, **options})

    def quota_desk(self) -> QuotaDesk:
        accounts = TenantAccounts(self.tenants)
        redis = MemoryRedis()
        redis.away = True
        charges = QuotaCharges(SharedQuotas(redis, "slos", "router-1"), accounts, lambda: self.now_s, patience_s=1.0)
        return QuotaDesk(accounts, charges, lambda: self.now_s, lambda tenant, quota: None)

    async def decide(self, arrival: UndecidedRequest, take: Callable[[Assessment], None]) -> Assessment:
        self.arrivals.append(arrival)
        if self.refusal is not None:
            raise self.refusal
        assessment = self.assess(arrival, self.now_s)
        take(assessment)
        self.decided_after()
        return assessment

    def assess(self, arrival: UndecidedRequest, now_s: float) -> Assessment:
        answer = self.desk.core.assess(arrival.arrival, now_s)
        if isinstance(answer, Unservable):
            facts = arrival.arrival.facts
            raise unservable_arrival_error(answer, self.desk.cluster.missing(), facts)
        return answer

    def track(self, request_id: str, _router_id: str) -> bool:
        self.tracked.append(request_id)
        return True

    async def reserve(self, request_id: str, _router_id: str) -> bool:
        if not self.redis:
            raise StateUnavailableError("redis://here", "no answer")
        self.reserved.append(request_id)
        return request_id not in self.taken_ids

    async def on_call(self, request_id: str, _peer: str) -> None:
        raise UnknownRequestError("no request with this id is running", field="request_id")

    def recent(self, max_age_s: float) -> inference_pb2.ClusterState:
        return self.message()

    def client_message(self) -> inference_pb2.ClusterState:
        return inference_pb2.ClusterState(ready=True)

    def message(self) -> inference_pb2.ClusterState:
        self.states += 1
        return inference_pb2.ClusterState(router_id="router-1", uptime_s=self.states)


@pytest.fixture
def router(desk: Desk) -> Router:
    return Router(desk)


def request(**fields: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(**{"text": "hello", "contract": EASY, **fields})


def generate(
    frontend: Frontend, message: inference_pb2.GenerateRequest, call: Call | None = None
) -> AsyncIterator[inference_pb2.GenerateResponse]:
    return frontend.Generate(message, cast("Any", call or Call()))


async def refused(frontend: Frontend, message: inference_pb2.GenerateRequest, call: Call | None = None) -> AbortedError:
    with pytest.raises(AbortedError) as caught:
        await anext(aiter(generate(frontend, message, call)))
    return caught.value


async def test_an_admitted_request_is_streamed_to_its_end(router: Router) -> None:
    call = Call((("x-request-id", "mine"), ("traceparent", f"00-{'1' * 32}-{'2' * 16}-01"), ("some-bin", b"\xff")))
    stream = aiter(generate(router.frontend(), request(), call))
    admission = (await anext(stream)).admission
    assert (admission.request_id, admission.verdict) == ("mine", inference_pb2.VERDICT_GUARANTEED)
    assert admission.prompt_tokens == 5
    assert call.trailing == {"x-request-id": "mine", "x-trace-id": "1" * 32}
    (live,) = router.accepted
    assert router.accounts.admitted == [live]
    assert (live.meter.arrival_s, live.guaranteed) == (5_000.0, True)
    live.output_buffer.put(0, [7, 8], "ab")
    assert (await anext(stream)).tokens.text == "ab"
    live.output_buffer.end(FINISHED)
    assert (await anext(stream)).finished.completion_tokens == 2
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert router.cancelled == ["mine"], "nothing is left of it"
    assert (router.accounts.received, router.accounts.refusals) == (1, [])


async def test_a_request_that_fails_ends_its_stream_with_the_error(router: Router) -> None:
    stream = aiter(generate(router.frontend(), request(request_id="mine")))
    await anext(stream)
    router.accepted[0].output_buffer.end(EngineFailureError("broken"))
    with pytest.raises(AbortedError) as caught:
        await anext(stream)
    assert (caught.value.code, caught.value.detail) == (grpc.StatusCode.INTERNAL, "broken")
    assert caught.value.metadata["x-request-id"] == "mine"
    assert router.cancelled == ["mine"]


async def test_a_client_that_leaves_ends_its_request(router: Router) -> None:
    frontend = router.frontend()
    coalescer = frontend._coalescer
    stream = frontend.Generate(request(request_id="mine"), cast("Any", Call()))
    await anext(aiter(stream))
    assert coalescer.streams == 1
    await cast("Any", stream).aclose()
    assert router.cancelled == ["mine"]
    assert coalescer.streams == 0


async def test_a_client_that_leaves_in_the_moment_of_its_admission_ends_its_request(router: Router) -> None:
    def leave() -> None:
        raise asyncio.CancelledError

    router.decided_after = leave
    with pytest.raises(asyncio.CancelledError):
        await anext(aiter(generate(router.frontend(), request())))
    assert router.cancelled == [router.accepted[0].request_id]
    assert not router.accounts.refusals


async def test_a_refused_request_is_told_why_and_counted_once(router: Router) -> None:
    router.refusal = OverloadedError("full", retry_after_s=2.0, metadata={"binding": "KV_MEMORY"})
    error = await refused(router.frontend(), request(request_id="mine"))
    assert (error.code, error.detail) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    (refusal,) = router.accounts.refusals
    assert (refusal.error, refusal.request_id) == (router.refusal, "mine")
    assert refusal.parsed is not None
    assert (router.accounts.received, router.accounts.admitted, router.cancelled) == (1, [], [])


async def test_a_router_that_shuts_down_takes_nothing(router: Router) -> None:
    frontend = router.frontend()
    frontend.draining = True
    error = await refused(frontend, request())
    assert (error.code, error.detail) == (grpc.StatusCode.UNAVAILABLE, "this router is shutting down")
    assert not router.tracked
    assert router.accounts.refusals[0].parsed is None


async def test_a_message_over_the_limit_is_refused_before_it_is_read(router: Router) -> None:
    message = request(text="x" * 20_000)
    size = message.ByteSize()
    error = await refused(router.frontend(max_message_bytes=size - 1), message)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.detail == f"request: {size} bytes; at most {size - 1}"
    at_the_limit = await refused(router.frontend(max_message_bytes=size), message)
    assert at_the_limit.detail.startswith("text: the prompt has 20000 tokens")


async def test_an_id_of_the_client_is_reserved_in_the_cluster_and_one_made_here_is_not(router: Router) -> None:
    await anext(aiter(generate(router.frontend(), request(request_id="theirs"))))
    await anext(aiter(generate(router.frontend(), request(), Call((("x-request-id", "named"),)))))
    assert (router.reserved, router.tracked) == (["theirs", "named"], [])
    await anext(aiter(generate(router.frontend(), request())))
    assert router.tracked == [router.accepted[-1].request_id]


async def test_an_id_in_use_is_refused(router: Router) -> None:
    router.taken_ids.add("theirs")
    error = await refused(router.frontend(), request(request_id="theirs"))
    assert error.code is grpc.StatusCode.ALREADY_EXISTS
    assert error.detail == "request_id: 'theirs' is, or was lately, in use"


async def test_without_redis_ids_are_unique_on_this_router(router: Router) -> None:
    router.redis = False
    await anext(aiter(generate(router.frontend(), request(request_id="theirs"))))
    assert router.tracked == ["theirs"]


async def test_a_request_waits_for_workers_for_so_long(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    router.redis = False
    router.desk.cluster.remove("d1")
    waits = 0

    async def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        router.now_s += seconds

    monkeypatch.setattr("router.api.frontend.asyncio.sleep", sleep)
    error = await refused(router.frontend(no_worker_patience_s=1.0), request())
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.detail == "no decode worker is connected; Redis at redis://here is unreachable"
    assert waits == math.ceil(1.0 / module.WORKER_POLL_S)
    assert not router.arrivals
    act_for(ACME)
    assert (await refused(router.frontend(no_worker_patience_s=1.0), request())).detail == NO_WORKERS


@pytest.mark.parametrize(("queued", "held", "full"), [(6, 3, False), (7, 3, True), (0, 10, True), (10, 0, True)])
async def test_more_than_so_many_may_not_wait(router: Router, queued: int, held: int, *, full: bool) -> None:
    router.queued, router.held = queued, held
    if full:
        error = await refused(router.frontend(), request())
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.detail == f"{queued + held} requests are waiting already"
    else:
        await anext(aiter(generate(router.frontend(), request())))


async def test_the_requests_of_a_session_share_its_contract_and_deadline(router: Router) -> None:
    frontend = router.frontend()
    whole = contract_pb2.Contract(session_id="s", task_deadline_s=30.0, stages=EASY.stages)
    await anext(aiter(generate(frontend, request(contract=whole))))
    router.now_s += 10.0
    await anext(aiter(generate(frontend, request(contract=contract_pb2.Contract(session_id="s")))))
    first, later = router.arrivals
    assert first.task_due_s == later.task_due_s == 5_030.0
    assert later.contract == first.contract == later.parsed.contract
    assert later.arrival_s == 5_010.0


async def test_a_quote_runs_nothing_and_uses_up_no_id(router: Router) -> None:
    frontend = router.frontend()

    async def quote(**fields: Any) -> inference_pb2.QuoteResponse:
        return await frontend.Quote(inference_pb2.QuoteRequest(request=request(**fields)), cast("Any", Call()))

    good = await quote(request_id="theirs")
    assert (good.admission.verdict, good.impossible) == (inference_pb2.VERDICT_GUARANTEED, False)
    assert (good.admission.request_id, good.admission.prompt_tokens) == ("", 5)
    never = await quote(contract=IMPOSSIBLE)
    assert (never.admission.verdict, never.impossible) == (inference_pb2.VERDICT_UNSPECIFIED, True)
    with pytest.raises(AbortedError, match="unknown profile"):
        await quote(contract=contract_pb2.Contract(profile="nobody"))
    assert [router.reserved, router.tracked, router.accepted, router.arrivals] == [[], [], [], []]
    assert router.accounts.received == 0


async def test_a_quote_neither_begins_nor_changes_a_session(router: Router) -> None:
    frontend = router.frontend()
    whole = contract_pb2.Contract(session_id="s", task_deadline_s=30.0, stages=EASY.stages)
    await frontend.Quote(inference_pb2.QuoteRequest(request=request(contract=whole)), cast("Any", Call()))
    router.now_s += 10.0
    await anext(aiter(generate(frontend, request(contract=whole))))
    assert router.arrivals[0].task_due_s == 5_040.0


async def test_the_options_of_a_request_go_with_it(router: Router) -> None:
    sampling = sampling_pb2.SamplingParams(
        stop=["lo"], include_stop_str_in_output=True, skip_special_tokens=False, max_tokens=9
    )
    contract = contract_pb2.Contract(session_id="s", task_deadline_s=30.0, stages=EASY.stages)
    await anext(aiter(generate(router.frontend(), request(sampling=sampling, contract=contract))))
    (live,) = router.accepted
    assert live.meter.task_due_s == 5_030.0
    assert live.text.feed(3) == "<special3>", "special tokens are part of this text"
    found = live.stops.feed("hello!")
    assert (found.text, found.matched) == ("hello", "lo")


async def test_tokens_are_joined_while_the_router_is_behind(router: Router) -> None:
    frontend = router.frontend()
    frontend._coalescer.interval_s = 60.0
    stream = aiter(generate(frontend, request()))
    await anext(stream)
    output = router.accepted[0].output_buffer
    output.put(0, [7], "a")
    assert (await anext(stream)).tokens.text == "a"
    following = asyncio.ensure_future(anext(stream))
    for index, text in ((1, "b"), (2, "c")):
        output.put(index, [7], text)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not following.done()
    output.end(FINISHED)
    assert (await following).tokens.text == "bc"


async def test_a_quote_without_workers_is_an_error(router: Router) -> None:
    router.desk.cluster.remove("d1")
    with pytest.raises(AbortedError) as caught:
        await router.frontend().Quote(inference_pb2.QuoteRequest(request=request()), cast("Any", Call()))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_an_unknown_request_cannot_be_cancelled(router: Router) -> None:
    with pytest.raises(AbortedError) as caught:
        await router.frontend().Cancel(inference_pb2.CancelRequest(request_id="x"), cast("Any", Call()))
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.metadata["x-request-id"] == "x"


async def test_the_state_is_told_once_or_again_and_again(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    frontend = router.frontend()
    once = await frontend.GetClusterState(inference_pb2.GetClusterStateRequest(), cast("Any", Call()))
    assert once.state.router_id == "router-1"
    monkeypatch.setattr("router.api.frontend.asyncio.sleep", sleep)
    for asked, waited in ((None, 1.0), (0.1, 0.1), (7.0, 7.0)):
        watching = aiter(
            frontend.WatchClusterState(inference_pb2.WatchClusterStateRequest(interval_s=asked), cast("Any", Call()))
        )
        first, second = await anext(watching), await anext(watching)
        assert second.state.uptime_s == first.state.uptime_s + 1
        assert slept[-1] == waited


@pytest.mark.parametrize("interval_s", [0.0, 0.0999, -1.0, math.nan])
async def test_an_interval_that_is_too_short_is_refused(router: Router, interval_s: float) -> None:
    message = inference_pb2.WatchClusterStateRequest(interval_s=interval_s)
    with pytest.raises(AbortedError) as caught:
        await anext(aiter(router.frontend().WatchClusterState(message, cast("Any", Call()))))
    assert (caught.value.code, caught.value.detail) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "interval_s: at least 0.1 s",
    )


async def test_who_watches_under_a_name_that_is_too_long_is_refused_by_the_header(router: Router) -> None:
    call = Call(metadata=(("x-tenant-id", "t" * 257),))
    with pytest.raises(AbortedError) as caught:
        await anext(
            aiter(router.frontend().WatchClusterState(inference_pb2.WatchClusterStateRequest(), cast("Any", call)))
        )
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.detail.startswith("x-tenant-id: at most 256 characters")


async def test_a_bounded_number_of_clients_may_watch(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.api.watchers.MAX_WATCHERS", 2)
    frontend, message = router.frontend(), inference_pb2.WatchClusterStateRequest(interval_s=60.0)
    watching = [aiter(frontend.WatchClusterState(message, cast("Any", Call()))) for _ in range(2)]
    for watcher in watching:
        await anext(watcher)
    with pytest.raises(AbortedError) as caught:
        await anext(aiter(frontend.WatchClusterState(message, cast("Any", Call()))))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await cast("Any", watching[0]).aclose()
    await anext(aiter(frontend.WatchClusterState(message, cast("Any", Call()))))


async def test_clients_of_one_tenant_keep_neither_operators_nor_others_from_watching(router: Router) -> None:
    frontend, message = router.frontend(), inference_pb2.WatchClusterStateRequest(interval_s=60.0)
    watching: list[AsyncIterator[Any]] = []

    async def watch(principal: Principal) -> None:
        act_for(principal)
        watcher = aiter(frontend.WatchClusterState(message, cast("Any", Call())))
        await anext(watcher)
        watching.append(watcher)

    for _ in range(16):
        await watch(ACME)
    with pytest.raises(AbortedError, match="16 clients of this tenant watch already") as caught:
        await watch(ACME)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    for principal in (GLOBEX, OPERATOR):
        await watch(principal)
    await cast("Any", watching[0]).aclose()
    await watch(ACME)


async def test_a_request_over_quota_is_told_when_to_come_back_and_its_id_is_free_again(router: Router) -> None:
    router.tenants = {
        "acme": TenantSettings(requests_per_s=0.5, requests_burst=2, prompt_tokens_per_s=100),
        "small": TenantSettings(prompt_tokens_per_s=1, prompt_tokens_burst=4),
    }
    frontend, call = router.frontend(), Call()
    await anext(aiter(generate(frontend, request(tenant="acme"), call)))
    limits = {name: value for name, value in call.trailing.items() if name.startswith("x-ratelimit")}
    assert limits == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "995",
        "x-ratelimit-reset-tokens": "50ms",
    }
    await anext(aiter(generate(frontend, request(tenant="acme"))))
    error = await refused(frontend, request(tenant="acme", request_id="again"))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.detail == "the quota requests_per_s of tenant 'acme' is used up: 0.5 a second, 2 at once"
    failure = error_of(error.code, error.detail, tuple(error.metadata.items()))
    assert isinstance(failure, QuotaExceededError)
    assert (failure.quota, failure.retry_after_s) == ("requests_per_s", 2.0)
    assert error.metadata["x-ratelimit-remaining-requests"] == "0"
    assert router.accounts.refusals[0].parsed is None, "refused before its prompt is looked at"
    await refused(frontend, request(tenant="small", request_id="long"))
    assert router.accounts.refusals[1].parsed is not None, "the journal is to free the id"

    router.now_s += 1.999
    error = await refused(frontend, request(tenant="acme", request_id="soon"))
    assert router.accounts.refusals[2].parsed is None
    assert "soon" not in router.reserved
    router.now_s += 0.001
    await anext(aiter(generate(frontend, request(tenant="acme", request_id="soon"))))
    await anext(aiter(generate(frontend, request(tenant="other"))))


async def test_a_value_that_a_tenant_may_not_ask_for_is_refused_by_its_field(router: Router) -> None:
    router.tenants = {"default": TenantSettings(max_value=2.0)}
    frontend = router.frontend()
    for value, good in ((2.0, True), (2.5, False)):
        message = request(contract=contract_pb2.Contract(stages=EASY.stages, value=value))
        if good:
            await anext(aiter(generate(frontend, message)))
        else:
            error = await refused(frontend, message)
            assert error.code is grpc.StatusCode.INVALID_ARGUMENT
            assert error.detail == "contract.value: at most 2 for this tenant; got 2.5"


async def test_quotes_have_a_rate_of_their_own(router: Router) -> None:
    router.tenants = {"default": TenantSettings(quotes_per_s=1.0, quotes_burst=1, requests_per_s=1.0)}
    frontend, message = router.frontend(), inference_pb2.QuoteRequest(request=request())
    await frontend.Quote(message, cast("Any", Call()))
    with pytest.raises(AbortedError, match="quotes_per_s") as caught:
        await frontend.Quote(message, cast("Any", Call()))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await anext(aiter(generate(frontend, request())))
    router.now_s += 1.0
    await frontend.Quote(message, cast("Any", Call()))


async def test_watchers_of_a_tenant_share_a_rate(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        router.now_s += seconds

    router.tenants = {"acme": TenantSettings(watch_updates_per_s=0.5, watch_updates_burst=1)}
    frontend, message = router.frontend(), inference_pb2.WatchClusterStateRequest(interval_s=0.5)
    monkeypatch.setattr("router.api.frontend.asyncio.sleep", sleep)
    call = Call((("x-tenant-id", "acme"),))
    watching = aiter(frontend.WatchClusterState(message, cast("Any", call)))
    await anext(watching)
    with pytest.raises(AbortedError, match="watch_updates_per_s"):
        await anext(aiter(frontend.WatchClusterState(message, cast("Any", call))))
    await anext(watching)
    assert slept == [0.5, 1.0, 0.5], "the quota is asked for at least once a second"


ACME = Principal("ci", "acme", frozenset({Role.CLIENT}))
GLOBEX = Principal("web", "globex", frozenset({Role.CLIENT}))
OPERATOR = Principal("ops", "", frozenset({Role.OPERATOR}))


async def test_two_tenants_use_one_id_at_once_and_each_sees_its_own(router: Router) -> None:
    frontend = router.frontend()
    for principal in (ACME, GLOBEX):
        act_for(principal)
        call = Call()
        admission = (await anext(aiter(generate(frontend, request(request_id="same"), call)))).admission
        assert (admission.request_id, call.trailing["x-request-id"]) == ("same", "same")
    assert router.reserved == ["acme/same", "globex/same"]
    assert [live.request_id for live in router.accepted] == ["acme/same", "globex/same"]
    assert [live.parsed.tenant for live in router.accepted] == ["acme", "globex"]


async def test_an_id_made_here_is_the_tenants_too(router: Router) -> None:
    act_for(ACME)
    admission = (await anext(aiter(generate(router.frontend(), request())))).admission
    assert router.tracked == [f"acme/{admission.request_id}"]
    assert admission.request_id.startswith("req-")


async def test_a_request_that_names_another_tenant_is_refused_and_stays_the_callers(router: Router) -> None:
    act_for(GLOBEX)
    message = request(request_id="mine", tenant="acme")
    error = await refused(router.frontend(), message)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.detail.startswith("tenant: ")
    assert error.metadata["x-request-id"] == "mine"
    named = await refused(router.frontend(), request(), Call((("x-tenant-id", "acme"),)))
    assert named.detail == error.detail.replace("tenant: ", "x-tenant-id: ", 1), "the header is what the client wrote"
    assert [refusal.request_id for refusal in router.accounts.refusals] == ["globex/mine", ""]
    await anext(aiter(generate(router.frontend(), request(tenant="globex"))))
    assert router.accepted[0].parsed.tenant == "globex"


async def test_an_id_in_use_is_told_as_the_client_knows_it(router: Router) -> None:
    act_for(ACME)
    router.taken_ids.add("acme/theirs")
    error = await refused(router.frontend(), request(request_id="theirs"))
    assert error.detail == "request_id: 'theirs' is, or was lately, in use"


async def test_a_session_of_one_tenant_is_no_session_of_another(router: Router) -> None:
    frontend = router.frontend()
    act_for(ACME)
    contract = contract_pb2.Contract(
        session_id="task", stages=[contract_pb2.Stage(prefill=contract_pb2.PrefillStage(ttft_s=60.0))]
    )
    await anext(aiter(generate(frontend, request(contract=contract))))
    later = request(contract=contract_pb2.Contract(session_id="task"))
    act_for(GLOBEX)
    await anext(aiter(generate(frontend, later)))
    act_for(ACME)
    await anext(aiter(generate(frontend, later)))
    assert [live.contract.prefill is not None for live in router.accepted] == [True, False, True]


async def test_forecasts_learn_from_each_tenants_applications_apart(router: Router) -> None:
    for principal in (ACME, GLOBEX):
        act_for(principal)
        await anext(aiter(generate(router.frontend(), request(application="chat"))))
    assert [live.facts.application for live in router.accepted] == ["acme/chat", "globex/chat"]
    assert [live.parsed.application for live in router.accepted] == ["chat", "chat"]


async def test_workers_and_routers_are_named_only_to_who_may_observe_them(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    frontend = router.frontend()
    asked = inference_pb2.GetClusterStateRequest()
    watch = inference_pb2.WatchClusterStateRequest()
    for principal, observes in ((ACME, False), (OPERATOR, True)):
        act_for(principal)
        answer = await frontend.GetClusterState(asked, cast("Any", Call()))
        assert bool(answer.state.router_id) is observes
        watched = await anext(aiter(frontend.WatchClusterState(watch, cast("Any", Call()))))
        assert bool(watched.state.router_id) is observes
    act_for(ACME)
    admission = (await anext(aiter(generate(frontend, request())))).admission
    assert (admission.prefill_worker_id, admission.decode_worker_id) == ("", "")
    quote = await frontend.Quote(inference_pb2.QuoteRequest(request=request()), cast("Any", Call()))
    assert (quote.admission.prefill_worker_id, quote.admission.decode_worker_id) == ("", "")
