"""The parser meets anything a client can send."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.api.parsing import Limits, check_call, complete
from router.requests.parsed_request import ParsedRequest
from services.contract.resolution import in_force
from services.engine.protocol import SamplingOptions
from services.identity.cache_salts import NO_SALTS, CacheSalts
from services.model.prompt_threads import INLINE_CHARACTERS
from services.model.tokenizer import Tokenizer
from services.rpc.errors import STATUS_OF, InvalidRequestError, RequestError, UnknownModelError
from services.slo.contract import PAPER_PROFILES, ProfileBook
from slos_serve.contract import contract_to_wire
from slos_serve.v1 import contract_pb2, inference_pb2, sampling_pb2
from tests.support.tiny_model import MAX_CONTEXT_TOKENS, VOCABULARY_SIZE, write_tiny_model

LIMITS = Limits(
    "tiny", VOCABULARY_SIZE, MAX_CONTEXT_TOKENS, default_max_tokens=256, max_prompt_characters=20 * MAX_CONTEXT_TOKENS
)
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
    return parse(message, names, tokenizer, LIMITS)


def parse(
    message: inference_pb2.GenerateRequest, metadata: dict[str, str], tokenizer: Tokenizer, limits: Limits
) -> ParsedRequest:
    """Parse a request as the front end does, all on one thread."""
    checked = check_call(message, metadata, PROFILES, limits)
    return complete(checked, checked.token_ids(tokenizer), limits, NO_SALTS)


def test_the_prompt_of_a_tenant_is_cached_with_its_salt(tokenizer: Tokenizer) -> None:
    salts = CacheSalts(lambda: bytes(32), {})
    made = {}
    for tenant in ("a", "b"):
        checked = check_call(inference_pb2.GenerateRequest(text="hi", tenant=tenant), {}, PROFILES, LIMITS)
        made[tenant] = complete(checked, checked.token_ids(tokenizer), LIMITS, salts).cache_salt
    assert made == {"a": salts.of("a"), "b": salts.of("b")}
    assert made["a"] != made["b"]


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


def refused(message: inference_pb2.GenerateRequest, tokenizer: Tokenizer) -> tuple[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        parsed(message, tokenizer)
    return caught.value.field, caught.value.detail


def of_sampling(**fields: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(text="hi", sampling=sampling_pb2.SamplingParams(**fields))


def test_every_sampling_parameter_arrives_under_its_own_name(tokenizer: Tokenizer) -> None:
    message = of_sampling(
        temperature=0.25,
        top_p=0.5,
        top_k=7,
        min_p=0.125,
        presence_penalty=-0.5,
        frequency_penalty=1.5,
        repetition_penalty=1.25,
        max_tokens=30,
        min_tokens=3,
        seed=-(2**63),
        stop=["x", "yy"],
        stop_token_ids=[20, 21],
        ignore_eos=True,
        skip_special_tokens=False,
        logit_bias={20: -100.0, 21: 100.0},
        logprobs=5,
        include_stop_str_in_output=True,
    )
    request = parsed(message, tokenizer)
    assert request.sampling == SamplingOptions(
        max_tokens=30,
        temperature=0.25,
        top_p=0.5,
        top_k=7,
        min_p=0.125,
        presence_penalty=-0.5,
        frequency_penalty=1.5,
        repetition_penalty=1.25,
        min_tokens=3,
        seed=-(2**63),
        stop_token_ids=(20, 21),
        ignore_eos=True,
        logprobs=5,
        logit_bias={20: -100.0, 21: 100.0},
    )
    assert (request.stop, request.include_stop, request.skip_special_tokens) == (("x", "yy"), True, False)


def test_what_is_unset_has_the_defaults_of_the_protocol(tokenizer: Tokenizer) -> None:
    request = parsed(of_sampling(), tokenizer)
    assert request.sampling == SamplingOptions(
        max_tokens=256,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        min_tokens=0,
        seed=None,
        stop_token_ids=(),
        ignore_eos=False,
        logprobs=None,
        logit_bias={},
    )
    assert (request.stop, request.include_stop, request.skip_special_tokens) == ((), False, True)
    assert request.expected_output_tokens is None


BOUNDS: dict[str, tuple[tuple[float, ...], tuple[float, ...], str]] = {
    "temperature": ((0.0, 2.0), (-0.001, 2.001, math.nan, math.inf), "in [0, 2]"),
    "top_p": ((0.001, 1.0), (0.0, 1.001), "in (0, 1]"),
    "top_k": ((0, 2**31 - 1), (-1,), "0 or more"),
    "min_p": ((0.0, 1.0), (-0.001, 1.001), "in [0, 1]"),
    "presence_penalty": ((-2.0, 2.0), (-2.001, 2.001), "in [-2, 2]"),
    "frequency_penalty": ((-2.0, 2.0), (-2.001, 2.001), "in [-2, 2]"),
    "repetition_penalty": ((0.001, 2.0), (0.0, 2.001), "in (0, 2]"),
    "max_tokens": ((1, MAX_CONTEXT_TOKENS - 2), (0, -1), "at least 1"),
    "min_tokens": ((0, 256), (-1, 257), "in [0, max_tokens = 256]"),
    "logprobs": ((0, 20), (-1, 21), "in [0, 20]"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_sampling_parameter_is_taken_up_to_its_bounds_and_refused_beyond(tokenizer: Tokenizer, name: str) -> None:
    good, bad, wanted = BOUNDS[name]
    for value in good:
        assert getattr(parsed(of_sampling(**{name: value}), tokenizer).sampling, name) == value
    for value in bad:
        field, detail = refused(of_sampling(**{name: value}), tokenizer)
        assert field == f"sampling.{name}"
        assert detail == f"must be {wanted}; got {value}"


@pytest.mark.parametrize(
    ("fields", "field", "detail"),
    [
        ({"stop_token_ids": [VOCABULARY_SIZE]}, "stop_token_ids", "1024 is not in the vocabulary"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "-1 is not in the vocabulary"),
        ({"logit_bias": {VOCABULARY_SIZE: 0.0}}, "logit_bias", "1024 is not in the vocabulary"),
        ({"stop_token_ids": [5] * 1025}, "stop_token_ids", "at most 1024 entries; got 1025"),
        ({"logit_bias": {5: 101.0}}, "logit_bias[5]", "must be in [-100, 100]; got 101.0"),
        ({"logit_bias": {5: -101.0}}, "logit_bias[5]", "must be in [-100, 100]; got -101.0"),
        ({"stop": ["x"] * 65}, "stop", "at most 64 entries; got 65"),
        ({"stop": ["x", ""]}, "stop[1]", "must have 1 to 1024 characters"),
        ({"stop": ["x" * 1025]}, "stop[0]", "must have 1 to 1024 characters"),
        ({"stop": ["x" * 1000] * 9}, "stop", "at most 8192 characters in all"),
    ],
)
def test_token_ids_and_stop_strings_have_limits(
    tokenizer: Tokenizer, fields: dict[str, Any], field: str, detail: str
) -> None:
    assert refused(of_sampling(**fields), tokenizer) == (f"sampling.{field}", detail)


def test_lists_are_taken_up_to_their_limits(tokenizer: Tokenizer) -> None:
    stop_token_ids = [0, VOCABULARY_SIZE - 1] * 512
    stop = ["x" * 128] * 64
    bias = dict.fromkeys(range(VOCABULARY_SIZE), 100.0)
    request = parsed(of_sampling(stop_token_ids=stop_token_ids, stop=stop, logit_bias=bias), tokenizer)
    assert (len(request.stop), len(request.sampling.stop_token_ids)) == (64, 1024)
    assert request.sampling.logit_bias == bias


@pytest.mark.parametrize(
    ("message", "field", "detail"),
    [
        (inference_pb2.GenerateRequest(), "input", "one of text, chat and token_ids is needed"),
        (inference_pb2.GenerateRequest(text=""), "text", "the prompt is empty"),
        (inference_pb2.GenerateRequest(chat=inference_pb2.ChatInput()), "chat", "the prompt is empty"),
        (
            inference_pb2.GenerateRequest(
                chat=inference_pb2.ChatInput(
                    messages=[
                        inference_pb2.ChatMessage(role="user", content="hi"),
                        inference_pb2.ChatMessage(role="wizard", content="hi"),
                    ]
                )
            ),
            "chat.messages[1].role",
            "unknown role 'wizard'; known: assistant, system, tool, user",
        ),
        (
            inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[5, VOCABULARY_SIZE])),
            "token_ids.ids[1]",
            "1024 is not in the vocabulary of 1024 tokens",
        ),
        (
            inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[5] * MAX_CONTEXT_TOKENS)),
            "token_ids",
            "the prompt has 8192 tokens; the model takes 8192, output included",
        ),
        (
            inference_pb2.GenerateRequest(text="a" * (20 * MAX_CONTEXT_TOKENS + 1)),
            "text",
            "163841 characters; at most 163840 can fit into 8192 tokens",
        ),
        (
            inference_pb2.GenerateRequest(
                chat=inference_pb2.ChatInput(
                    messages=[inference_pb2.ChatMessage(role="user", content="a" * 10 * MAX_CONTEXT_TOKENS)] * 3
                )
            ),
            "chat",
            "245760 characters; at most 163840 can fit into 8192 tokens",
        ),
        (
            inference_pb2.GenerateRequest(
                chat=inference_pb2.ChatInput(messages=[inference_pb2.ChatMessage(role="user")] * 4097)
            ),
            "chat.messages",
            "at most 4096 messages; got 4097",
        ),
        (
            inference_pb2.GenerateRequest(text="hi", tenant="t" * 257),
            "tenant",
            "at most 256 characters; got 257",
        ),
        (
            inference_pb2.GenerateRequest(text="hi", application="a" * 257),
            "application",
            "at most 256 characters; got 257",
        ),
        (
            inference_pb2.GenerateRequest(text="hi", contract=contract_pb2.Contract(session_id="s" * 257)),
            "contract.session_id",
            "at most 256 characters; got 257",
        ),
        (
            inference_pb2.GenerateRequest(
                text="hi", contract=contract_pb2.Contract(final_stages=[contract_pb2.DecodeStage()] * 65)
            ),
            "contract.final_stages",
            "at most 64 decode stages; got 65",
        ),
        (
            inference_pb2.GenerateRequest(
                text="hi",
                contract=contract_pb2.Contract(
                    stages=[
                        contract_pb2.Stage(decode=contract_pb2.DecodeStage(tpot_s=1.0, ends_with="x" * 1025)),
                        contract_pb2.Stage(decode=contract_pb2.DecodeStage(tpot_s=1.0)),
                    ]
                ),
            ),
            "contract.stages[0].decode.ends_with",
            "at most 1024 characters; got 1025",
        ),
        (
            inference_pb2.GenerateRequest(
                text="hi",
                contract=contract_pb2.Contract(
                    stages=[contract_pb2.Stage(prefill=contract_pb2.PrefillStage(max_slowdown=1.7e308))]
                ),
            ),
            "contract.stages[0].prefill.max_slowdown",
            "is beyond what a contract can say: too large; got 1.7e+308",
        ),
        (
            inference_pb2.GenerateRequest(text="hi", contract=contract_pb2.Contract(profile="x" * 1000)),
            "contract.profile",
            f"unknown profile '{'x' * 39}…'; known: {', '.join(sorted(PAPER_PROFILES))}",
        ),
        (
            inference_pb2.GenerateRequest(text="hi", expected_output_tokens=0),
            "expected_output_tokens",
            "must be positive",
        ),
        (
            inference_pb2.GenerateRequest(text="hi", request_id="a b"),
            "request_id",
            "must be 1 to 128 printable ASCII characters without blanks",
        ),
        (
            inference_pb2.GenerateRequest(text="hi", request_id="a" * 129),
            "request_id",
            "must be 1 to 128 printable ASCII characters without blanks",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_field(
    tokenizer: Tokenizer, message: inference_pb2.GenerateRequest, field: str, detail: str
) -> None:
    assert refused(message, tokenizer) == (field, detail)


def test_a_token_outside_the_vocabulary_is_found_in_a_text_too(tokenizer: Tokenizer) -> None:
    small = replace(LIMITS, vocabulary_size=20)
    with pytest.raises(InvalidRequestError, match="vocabulary of 20") as caught:
        parse(inference_pb2.GenerateRequest(text="hi"), {}, tokenizer, small)
    assert caught.value.field == "text"


def test_another_model_is_not_served(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnknownModelError) as caught:
        parsed(inference_pb2.GenerateRequest(text="hi", model="gpt-9"), tokenizer)
    assert (caught.value.field, caught.value.detail) == ("model", "'gpt-9' is not served here; 'tiny' is")
    assert parsed(inference_pb2.GenerateRequest(text="hi", model="tiny"), tokenizer).prompt


def test_the_id_in_the_message_wins_over_metadata_and_without_one_it_is_made(tokenizer: Tokenizer) -> None:
    message = inference_pb2.GenerateRequest(text="hi", request_id="mine")
    assert parsed(message, tokenizer, x_request_id="theirs").request_id == "mine"
    message.request_id = ""
    assert parsed(message, tokenizer, x_request_id="theirs").request_id == "theirs"
    made = {parsed(message, tokenizer).request_id for _ in range(5)}
    assert len(made) == 5
    assert all(request_id.startswith("req-") for request_id in made)


def test_the_caller_in_the_message_wins_over_metadata(tokenizer: Tokenizer) -> None:
    message = inference_pb2.GenerateRequest(text="hi", application="chat", tenant="acme")
    metadata = {"x_slo_application": "batch", "x_tenant_id": "other"}
    request = parsed(message, tokenizer, **metadata)
    assert (request.application, request.tenant) == ("chat", "acme")
    request = parsed(inference_pb2.GenerateRequest(text="hi"), tokenizer, **metadata)
    assert (request.application, request.tenant) == ("batch", "other")


@pytest.mark.parametrize(
    ("metadata", "field", "detail"),
    [
        ({"x_tenant_id": "t" * 257}, "x-tenant-id", "at most 256 characters; got 257"),
        ({"x_slo_application": "é"}, "x-slo-application", "must be printable ASCII"),
        ({"x_gateway_inference_fairness_id": "é"}, "x-gateway-inference-fairness-id", "must be printable ASCII"),
        ({"x_slo_tttft_ms": "5"}, "x-slo-tttft-ms", "no such header; known: x-slo-profile,"),
    ],
)
def test_metadata_at_fault_are_named(tokenizer: Tokenizer, metadata: dict[str, str], field: str, detail: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parsed(inference_pb2.GenerateRequest(text="hi"), tokenizer, **metadata)
    assert caught.value.field == field
    assert caught.value.detail.startswith(detail)


def test_the_kind_of_input_names_the_operation(tokenizer: Tokenizer) -> None:
    turn = inference_pb2.ChatMessage(role="user", content="hi")
    chat = parsed(inference_pb2.GenerateRequest(chat=inference_pb2.ChatInput(messages=[turn])), tokenizer)
    text = parsed(inference_pb2.GenerateRequest(text="hi"), tokenizer)
    assert (chat.operation, text.operation) == ("chat", "text_completion")
    assert text.prompt == tuple(tokenizer.encode("hi"))
    assert chat.prompt == tuple(tokenizer.encode_chat([{"role": "user", "content": "hi"}]))
    hint = inference_pb2.GenerateRequest(text="hi", expected_output_tokens=1)
    assert parsed(hint, tokenizer).expected_output_tokens == 1


def test_a_contract_that_makes_no_sense_is_refused_by_field_or_metadata(tokenizer: Tokenizer) -> None:
    message = inference_pb2.GenerateRequest(text="hi", contract=contract_pb2.Contract(value=-1.0))
    assert refused(message, tokenizer) == ("contract.value", "must be finite and positive; got -1.0")
    with pytest.raises(InvalidRequestError) as caught:
        parsed(inference_pb2.GenerateRequest(text="hi"), tokenizer, x_slo_ttft_ms="soon")
    assert (caught.value.field, caught.value.detail) == ("x-slo-ttft-ms", "'soon' is no number of milliseconds")


@pytest.mark.parametrize("content", ["", "hi"])
def test_many_short_messages_are_rendered_beside_the_event_loop(content: str) -> None:
    def characters(messages: int) -> int:
        turns = [inference_pb2.ChatMessage(role="user", content=content)] * messages
        message = inference_pb2.GenerateRequest(chat=inference_pb2.ChatInput(messages=turns))
        return check_call(message, {}, PROFILES, LIMITS).input_characters

    assert characters(10) <= INLINE_CHARACTERS < characters(200)
