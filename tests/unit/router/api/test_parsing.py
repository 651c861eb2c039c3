"""The parser meets anything a client can send."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.api.parsing import Limits, parse
from router.requests.parsed_request import ParsedRequest
from services.contract.resolution import in_force
from services.model.tokenizer import Tokenizer
from services.rpc.errors import STATUS_OF, InvalidRequestError, RequestError
from services.slo.contract import PAPER_PROFILES, ProfileBook
from slos_serve.contract import contract_to_wire
from slos_serve.v1 import contract_pb2, inference_pb2, sampling_pb2
from tests.support.tiny_model import MAX_CONTEXT_TOKENS, VOCABULARY_SIZE, write_tiny_model

LIMITS = Limits("tiny", VOCABULARY_SIZE, MAX_CONTEXT_TOKENS, default_max_tokens=256)
PROFILES = ProfileBook(PAPER_PROFILES)

any_float = st.floats(allow_nan=True, allow_infinity=True)
any_int = st.integers(min_value=-(2**31), max_value=2**31 - 1)
any_text = st.text(st.characters(codec="utf-8"), max_size=20)


def fields(message: type[Any], **strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A message with any subset of these fields set."""
    return st.fixed_dictionaries({}, optional=strategies).map(lambda values: message(**values))


prefill_stages = st.one_of(
    fields(contract_pb2.PrefillStage, ttft_s=any_float), fields(contract_pb2.PrefillStage, max_slowdown=any_float)
)
stages = st.one_of(
    fields(contract_pb2.Stage, prefill=prefill_stages),
    fields(contract_pb2.Stage, decode=fields(contract_pb2.DecodeStage, tpot_s=any_float, ends_with=any_text)),
)
contracts = fields(
    contract_pb2.Contract,
    profile=st.sampled_from(["", "chatbot", "reasoning", "nobody"]),
    stages=st.lists(stages, max_size=4),
    value=any_float,
    on_overload=st.integers(0, 5),
    task_deadline_s=any_float,
)
samplings = fields(
    sampling_pb2.SamplingParams,
    temperature=any_float,
    top_p=any_float,
    top_k=any_int,
    min_p=any_float,
    presence_penalty=any_float,
    frequency_penalty=any_float,
    repetition_penalty=any_float,
    max_tokens=any_int,
    min_tokens=any_int,
    seed=st.integers(-(2**63), 2**63 - 1),
    stop=st.lists(any_text, max_size=3),
    stop_token_ids=st.lists(any_int, max_size=3),
    logprobs=any_int,
)
inputs = st.one_of(
    st.builds(lambda text: {"text": text}, any_text),
    st.builds(lambda ids: {"token_ids": inference_pb2.TokenIds(ids=ids)}, st.lists(any_int, max_size=5)),
    st.builds(
        lambda role, content: {
            "chat": inference_pb2.ChatInput(messages=[inference_pb2.ChatMessage(role=role, content=content)])
        },
        st.sampled_from(["user", "system", "wizard"]),
        any_text,
    ),
    st.just({}),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tiny_model(tmp_path_factory.mktemp("model")))


def parsed(message: inference_pb2.GenerateRequest, tokenizer: Tokenizer, **metadata: str) -> ParsedRequest:
    names = {name.replace("_", "-"): value for name, value in metadata.items()}
    return parse(message, names, tokenizer, PROFILES, LIMITS)


@settings(max_examples=300)
@given(prompt=inputs, sampling=samplings, contract=contracts, request_id=any_text, ttft=any_text)
def test_whatever_comes_is_parsed_or_refused_by_field(
    tokenizer: Tokenizer, prompt: dict[str, Any], sampling: Any, contract: Any, request_id: str, ttft: str
) -> None:
    message = inference_pb2.GenerateRequest(request_id=request_id, sampling=sampling, contract=contract, **prompt)
    refused: RequestError | None = None
    request: ParsedRequest | None = None
    try:
        request = parsed(message, tokenizer, x_slo_ttft_ms=ttft)
    except RequestError as error:
        refused = error
    if request is None:
        assert type(refused) in STATUS_OF
        assert refused is not None
        assert refused.field
        return
    assert request.prompt
    assert len(request.prompt) + request.sampling.max_tokens <= MAX_CONTEXT_TOKENS
    assert 0 <= request.sampling.min_tokens <= request.sampling.max_tokens
    assert all(0 <= token_id < VOCABULARY_SIZE for token_id in request.prompt)


def test_the_message_wins_over_metadata_which_wins_over_the_profile(tokenizer: Tokenizer) -> None:
    message = inference_pb2.GenerateRequest(text="hi", contract=contract_pb2.Contract(profile="coder"))
    metadata = {"x_slo_ttft_ms": "700"}
    contract = parsed(message, tokenizer, **metadata).contract
    assert contract.prefill is not None
    assert contract.prefill.ttft_s == 0.7
    assert contract.decode == PAPER_PROFILES["coder"].decode
    message.contract.stages.add().prefill.ttft_s = 0.2
    contract = parsed(message, tokenizer, **metadata).contract
    assert contract.prefill is not None
    assert contract.prefill.ttft_s == 0.2


def test_the_contract_comes_back_as_it_was_sent(tokenizer: Tokenizer) -> None:
    sent = contract_pb2.Contract(value=2.5, on_overload=contract_pb2.ON_OVERLOAD_REFUSE, task_deadline_s=9.0)
    sent.stages.add().prefill.ttft_s = 0.3
    thinking = sent.stages.add().decode
    thinking.tpot_s, thinking.ends_with = 0.05, "</think>"
    sent.stages.add().decode.tpot_s = 0.1
    request = parsed(inference_pb2.GenerateRequest(text="hi", contract=sent), tokenizer)
    assert contract_to_wire(in_force(request.contract)) == sent


def test_without_a_limit_the_output_is_bounded_by_default_and_by_room(tokenizer: Tokenizer) -> None:
    assert parsed(inference_pb2.GenerateRequest(text="hi"), tokenizer).sampling.max_tokens == 256
    long = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[20] * (MAX_CONTEXT_TOKENS - 10)))
    assert parsed(long, tokenizer).sampling.max_tokens == 10
    long.sampling.max_tokens = 11
    with pytest.raises(InvalidRequestError, match="room for 10"):
        parsed(long, tokenizer)
