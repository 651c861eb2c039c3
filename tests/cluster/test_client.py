"""The client package and its examples against a running cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slos_serve import (
    AsyncClient,
    Client,
    Contract,
    FinishReason,
    ImpossibleContractError,
    InvalidRequestError,
    Message,
    OnOverload,
    Profile,
    Sampling,
    Tokens,
    UnknownRequestError,
    Verdict,
    WorkerRole,
)
from tests.support.cluster import ClusterUnderTest

pytestmark = pytest.mark.cluster

EXAMPLES = Path(__file__).parents[2] / "examples"
GREEDY = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)
EASY = Contract.latency(ttft_s=60.0, tpot_s=60.0)
"""Kept however busy this machine is."""
ENDLESS = Sampling(max_tokens=4000, ignore_eos=True)


async def test_text_chat_and_token_ids(emulated: ClusterUnderTest) -> None:
    emulated.wait_ready(4)
    async with AsyncClient(emulated.address) as client:
        for prompt in ("hello", [Message("user", "hello")], [30, 31, 32]):
            answer = await client.generate(prompt, sampling=GREEDY, contract=EASY).completion()
            assert len(answer.token_ids) == 6
            assert answer.admission.verdict is Verdict.GUARANTEED
            assert answer.admission.contract.decode == EASY.decode
            assert answer.finished.reason is FinishReason.LENGTH
            assert answer.finished.achieved.kept
            assert answer.finished.phases.prefill_s > 0


async def test_a_quote_and_both_kinds_of_no(emulated: ClusterUnderTest) -> None:
    never = Contract.latency(ttft_s=1e-5, on_overload=OnOverload.REFUSE)
    async with AsyncClient(emulated.address) as client:
        quote = await client.quote("hello", contract=never)
        assert quote.impossible
        assert quote.admission.verdict is Verdict.REFUSED
        with pytest.raises(ImpossibleContractError, match="idle worker"):
            await client.generate("hello", contract=never).completion()
        with pytest.raises(InvalidRequestError) as caught:
            await client.generate("hello", sampling=Sampling(top_p=7.0)).completion()
        assert caught.value.field == "sampling.top_p"


async def test_leaving_a_stream_frees_everything(emulated: ClusterUnderTest) -> None:
    emulated.wait_empty()
    before = emulated.state().counters.cancelled
    async with AsyncClient(emulated.address) as client:
        async for event in client.generate("hello", sampling=ENDLESS):
            if isinstance(event, Tokens):
                break
        emulated.wait_empty()
    with Client(emulated.address) as blocking:
        for event in blocking.generate("hello", sampling=ENDLESS):
            if isinstance(event, Tokens):
                break
        emulated.wait_empty()
    assert emulated.state().counters.cancelled == before + 2


async def test_cancelling_by_id_ends_the_stream_in_order(emulated: ClusterUnderTest) -> None:
    async with AsyncClient("127.0.0.1:1", emulated.address) as client:
        stream = client.generate("hello", sampling=ENDLESS, request_id="by-id")
        await anext(stream)
        await client.cancel("by-id")
        rest = [event async for event in stream]
        assert stream.finished is rest[-1]
        assert stream.finished is not None
        assert stream.finished.reason is FinishReason.ABORT
    async with AsyncClient(emulated.address) as alone:
        with pytest.raises(UnknownRequestError):
            await alone.cancel("by-id")


async def test_a_session_ends_with_its_loose_stage(emulated: ClusterUnderTest) -> None:
    async with AsyncClient(emulated.address) as client:
        session = client.session(Contract(profile=Profile.TOOL_USE, task_deadline_s=60.0))
        steps = [await session.generate("step", sampling=GREEDY, final=last).completion() for last in (False, True)]
    assert [step.admission.contract.decode[0].tpot_s for step in steps] == [0.05, 0.1]


def test_the_state_of_the_cluster(emulated: ClusterUnderTest) -> None:
    emulated.wait_ready(4)
    with Client(emulated.address) as client:
        state = client.cluster_state()
    assert state.ready
    assert state.model == "tiny"
    assert sum(worker.role is WorkerRole.DECODE for worker in state.workers) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("chat.py", ["What is the capital of France?"], "first token in"),
        ("coding_assistant.py", [], "[96 tokens; every one within"),
        ("agent_loop.py", [], "population(Oslo) -> Oslo: 717710 people"),
        ("batch.py", [], "16 of 16 done"),
    ],
)
def test_the_examples_run(emulated: ClusterUnderTest, name: str, arguments: list[str], says: str) -> None:
    emulated.wait_ready(4)
    emulated.wait_empty()
    outcome = subprocess.run(
        [sys.executable, str(EXAMPLES / name), emulated.address, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert says in outcome.stdout
