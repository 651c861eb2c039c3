"""Both clients against a scripted router: events, leaving early, deadlines, metadata, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from services.rpc.errors import EngineFailureError as EngineFailedOnServer
from slos_serve import (
    AsyncClient,
    Client,
    Completion,
    Contract,
    DeadlineError,
    DecodeTarget,
    EngineFailureError,
    Event,
    Finished,
    FinishReason,
    Message,
    OnOverload,
    PrefillTarget,
    Profile,
    RetryPolicy,
    Sampling,
    Tls,
    Tokens,
    UnknownRequestError,
    UnreachableError,
    Verdict,
    connection,
)
from slos_serve.v1 import contract_pb2
from tests.unit.client.scripted import PATIENCE_S, admission, finished, scripted, tokens, whole_stream

Ask = Callable[..., Awaitable[Completion]]


async def ask_async(address: str, *arguments: object, **options: object) -> Completion:
    async with AsyncClient(address) as client:
        return await client.generate(*arguments, **options).completion()  # type: ignore[arg-type]


async def ask_blocking(address: str, *arguments: object, **options: object) -> Completion:
    def ask() -> Completion:
        with Client(address) as client:
            return client.generate(*arguments, **options).completion()  # type: ignore[arg-type]

    return await asyncio.to_thread(ask)


both = pytest.mark.parametrize("ask", [ask_async, ask_blocking])


@both
async def test_a_stream_is_typed_and_complete(ask: Ask) -> None:
    with scripted(whole_stream()) as router:
        answer = await ask(router.address, "Say hello")
    assert answer.text == "Hello world"
    assert answer.token_ids == (100, 101)
    assert answer.admission.verdict is Verdict.GUARANTEED
    assert answer.admission.earliest_guarantee_s is None
    assert answer.finished.reason is FinishReason.LENGTH
    assert answer.finished.achieved.tpot_s == 0.02
    assert answer.finished.kv_pull is None


@both
async def test_what_is_asked_reaches_the_router(ask: Ask) -> None:
    contract = Contract(
        profile=Profile.CODER,
        prefill=PrefillTarget(max_slowdown=3),
        decode=(DecodeTarget(0.05, ends_with="</think>"), DecodeTarget(0.1)),
        value=2.0,
        on_overload=OnOverload.REFUSE,
        task_deadline_s=9.0,
    )
    with scripted(whole_stream()) as router:
        await ask(
            router.address,
            [Message("system", "Be brief."), Message("user", "Hi")],
            contract=contract,
            sampling=Sampling(max_tokens=7, temperature=0.0, stop=("x",), logit_bias={5: -1.0}),
            request_id="mine",
            tenant="acme",
            timeout_s=40.0,
            traceparent="00-11111111111111111111111111111111-2222222222222222-01",
            metadata={"X-Extra": "1"},
        )
    request, metadata, left_s = router.requests[0], router.metadata[0], router.left_s[0]
    assert [(turn.role, turn.content) for turn in request.chat.messages] == [("system", "Be brief."), ("user", "Hi")]
    assert request.contract.stages[0].prefill.max_slowdown == 3
    assert request.contract.stages[1].decode.ends_with == "</think>"
    assert request.contract.on_overload == contract_pb2.ON_OVERLOAD_REFUSE
    assert request.contract.task_deadline_s == 9.0
    assert request.sampling.max_tokens == 7
    assert request.sampling.HasField("temperature")
    assert not request.sampling.HasField("top_p")
    assert request.sampling.logit_bias[5] == -1.0
    assert (request.request_id, request.tenant) == ("mine", "acme")
    assert metadata["traceparent"] == "00-11111111111111111111111111111111-2222222222222222-01"
    assert metadata["x-request-id"] == "mine"
    assert metadata["x-extra"] == "1"
    assert left_s is not None
    assert 0 < left_s < 60, "the deadline travels"


@both
async def test_text_and_token_ids_are_sent_as_such(ask: Ask) -> None:
    with scripted(whole_stream()) as router:
        await ask(router.address, "raw")
        await ask(router.address, [5, 6, 7])
        await ask(router.address, [])
    assert router.requests[0].text == "raw"
    assert list(router.requests[1].token_ids.ids) == [5, 6, 7]
    assert router.requests[2].WhichOneof("input") == "token_ids"


@both
async def test_a_prompt_of_two_kinds_is_a_type_error(ask: Ask) -> None:
    with pytest.raises(TypeError, match="mixes"):
        await ask("127.0.0.1:1", [Message("user", "Hi"), 5])


@both
async def test_the_deadline_of_the_caller_ends_the_call(ask: Ask) -> None:
    with scripted([admission(), PATIENCE_S]) as router:
        with pytest.raises(DeadlineError):
            await ask(router.address, "slow", request_id="late", timeout_s=0.5)
        assert await asyncio.to_thread(router.ended.get, timeout=PATIENCE_S) == "late"


@both
async def test_an_error_after_tokens_is_raised_and_not_retried(ask: Ask) -> None:
    broken = EngineFailedOnServer("the engine failed", retry_after_s=0.01)
    with scripted([admission(), tokens(0, "a"), broken]) as router:
        with pytest.raises(EngineFailureError, match="the engine failed") as caught:
            await ask(router.address, "x", request_id="mine")
        assert len(router.requests) == 1
    assert caught.value.request_id == "mine"
    assert caught.value.code is grpc.StatusCode.INTERNAL


@both
async def test_nobody_there(ask: Ask) -> None:
    with pytest.raises(UnreachableError):
        await ask("127.0.0.1:1", "x", timeout_s=PATIENCE_S)


async def test_breaking_out_of_the_loop_cancels_at_the_router() -> None:
    with scripted([admission(), tokens(0, "a"), PATIENCE_S]) as router:
        async with AsyncClient(router.address) as client:
            async for event in client.generate("x", request_id="left"):
                if isinstance(event, Tokens):
                    break
            assert await asyncio.to_thread(router.ended.get, timeout=PATIENCE_S) == "left"


def test_breaking_out_of_the_loop_cancels_at_the_router_for_threads() -> None:
    with scripted([admission(), tokens(0, "a"), PATIENCE_S]) as router, Client(router.address) as client:
        for event in client.generate("x", request_id="left"):
            if isinstance(event, Tokens):
                break
        assert router.ended.get(timeout=PATIENCE_S) == "left"


async def test_a_cancelled_task_cancels_at_the_router() -> None:
    with scripted([admission(), PATIENCE_S]) as router:
        async with AsyncClient(router.address) as client:
            stream = client.generate("x", request_id="task")
            await anext(stream)
            waiting = asyncio.create_task(stream.completion())
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await asyncio.to_thread(router.ended.get, timeout=PATIENCE_S) == "task"


def test_another_thread_may_cancel() -> None:
    with scripted([admission(), PATIENCE_S]) as router, Client(router.address) as client:
        stream = client.generate("x", request_id="thread")
        next(stream)
        events: list[Event] = []
        thread = threading.Thread(target=lambda: events.extend(stream))
        thread.start()
        stream.cancel()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert events == []
        assert router.ended.get(timeout=PATIENCE_S) == "thread"


def test_one_client_serves_many_threads() -> None:
    with scripted(whole_stream()) as router, Client(router.address) as client:
        texts: list[str] = []
        threads = [
            threading.Thread(target=lambda: texts.append(client.generate("x").completion().text)) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert texts == ["Hello world"] * 16


async def test_an_event_of_a_later_protocol_is_skipped() -> None:
    from slos_serve.v1 import inference_pb2

    with scripted([admission(), inference_pb2.GenerateResponse(), tokens(0, "a"), finished(1)]) as router:
        async with AsyncClient(router.address) as client:
            events = [event async for event in client.generate("x")]
    assert len(events) == 3
    assert isinstance(events[-1], Finished)


async def test_quote_and_cancel_and_state() -> None:
    with scripted([admission(verdict=0)]) as first, scripted(whole_stream()) as second:
        second.cancelled.append("there")
        async with AsyncClient(first.address) as client:
            assert (await client.quote("x")).admission.verdict is Verdict.REFUSED
        async with AsyncClient(first.address, second.address) as client:
            await client.cancel("there")
            with pytest.raises(UnknownRequestError):
                await client.cancel("nowhere")
            asked = {(await client.cluster_state()).router_id for _ in range(2)}
            assert asked == {first.address, second.address}
        with Client(first.address, second.address) as blocking:
            blocking.cancel("there")
            with pytest.raises(UnknownRequestError):
                blocking.cancel("nowhere")
            assert blocking.cluster_state().workers == ()


async def test_the_callers_of_a_client_are_those_of_every_request_that_names_none() -> None:
    with scripted(whole_stream()) as router:
        async with AsyncClient(router.address, application="app", tenant="acme") as client:
            await client.generate("x").completion()
            await client.generate("x", application="other", tenant="else").completion()
        with Client(router.address, application="app", tenant="acme") as blocking:
            blocking.generate("x", tenant="else").completion()
    callers = [(request.application, request.tenant) for request in router.requests]
    assert callers == [("app", "acme"), ("other", "else"), ("app", "else")]


async def test_a_cancellation_fails_if_a_router_could_not_be_asked() -> None:
    with scripted(whole_stream()) as router:
        for addresses in (("127.0.0.1:1", router.address), (router.address, "127.0.0.1:1")):
            async with AsyncClient(*addresses) as client:
                with pytest.raises(UnreachableError):
                    await client.cancel("nowhere")
            with Client(*addresses) as blocking, pytest.raises(UnreachableError):
                blocking.cancel("nowhere")


async def test_the_requests_of_a_session_share_contract_and_router() -> None:
    with scripted(whole_stream()) as first, scripted(whole_stream()) as second:
        async with AsyncClient(first.address, second.address) as client:
            session = client.session(Contract(profile=Profile.TOOL_USE, task_deadline_s=5.0))
            for step in range(4):
                await session.generate("step", final=step == 3).completion()
        with Client(first.address, second.address) as blocking:
            again = blocking.session(Contract(profile=Profile.TOOL_USE), session_id=session.session_id)
            again.generate("one more").completion()
    requests = [*first.requests, *second.requests]
    assert not first.requests or not second.requests, "one session, one router"
    assert len(requests) == 5
    assert {request.contract.session_id for request in requests} == {session.session_id}
    assert [request.contract.session_final for request in requests] == [False, False, False, True, False]
    assert all(request.contract.profile == "tool_use" for request in requests)


def test_tls_by_a_root_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that is busy may take long for a handshake.
    monkeypatch.setattr(connection, "CONNECT_S", PATIENCE_S)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=router.test"),
            *("-addext", "subjectAltName=DNS:router.test", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    tls = Tls(root_certificates=certificate.read_bytes(), server_name="router.test")
    with scripted(whole_stream(), credentials=credentials) as router:
        with Client(router.address, tls=tls) as client:
            assert client.generate("x").completion().text == "Hello world"
        strangers = Tls(root_certificates=certificate.read_bytes(), server_name="elsewhere.test")
        once = RetryPolicy(max_attempts=1)
        for other in (Client(router.address, tls=strangers, retry=once), Client(router.address, retry=once)):
            with contextlib.closing(other), pytest.raises(UnreachableError):
                other.generate("x", timeout_s=PATIENCE_S).completion()
