"""What HTTP clients send becomes the client's terms, or a 400 that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.http_errors import HttpError
from gateway.requests import ChatBody, CompletionBody, Generation, parse_chat, parse_completion
from slos_serve import Message, Sampling


def completion(**fields: Any) -> bytes:
    return json.dumps({"prompt": "hi", **fields}).encode()


def chat(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def refused(failure: pytest.ExceptionInfo[HttpError]) -> tuple[object, object]:
    assert failure.value.status == 400
    error = failure.value.body["error"]
    return error["param"], error["code"]


@pytest.mark.parametrize(
    ("prompt", "expected"), [("hi", "hi"), (["hi"], "hi"), ([5, 6], [5, 6]), ([[5, 6]], [5, 6]), ([], [])]
)
def test_every_form_of_one_prompt(prompt: Any, expected: Any) -> None:
    assert parse_completion(completion(prompt=prompt)).prompt_of() == expected


@pytest.mark.parametrize("prompt", [["a", "b"], [[5], [6]]])
def test_several_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(HttpError) as caught:
        parse_completion(completion(prompt=prompt)).prompt_of()
    assert refused(caught) == ("prompt", "unsupported_value")


def test_messages_of_all_kinds() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "me"},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
    ]
    assert parse_chat(chat(messages=messages)).prompt_of() == [
        Message("system", "be brief"),
        Message("user", "ab"),
        Message("assistant", ""),
        Message("tool", "42"),
    ]


def test_sampling_by_openai_and_vllm_names() -> None:
    body = parse_completion(
        completion(
            temperature=0, top_k=-1, stop="END", seed=2**40, logit_bias={"7": -1.5}, ignore_eos=True, min_tokens=3
        )
    )
    sampling = body.sampling(5, None)
    assert (sampling.temperature, sampling.top_k, sampling.stop, sampling.seed) == (0, 0, ("END",), 2**40)
    assert (sampling.logit_bias, sampling.ignore_eos, sampling.min_tokens) == ({7: -1.5}, True, 3)
    assert (sampling.max_tokens, sampling.logprobs, sampling.top_p) == (5, None, None)


def test_every_way_to_draw_tokens_keeps_its_name_and_value() -> None:
    given = {
        "min_tokens": 2,
        "temperature": 0.3,
        "top_p": 0.4,
        "top_k": 5,
        "min_p": 0.06,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.8,
        "repetition_penalty": 1.9,
        "seed": 10,
        "stop": ["a", "b"],
        "stop_token_ids": [11, 12],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logit_bias": {"13": 1.4, "-15": -1.6},
    }
    lists = {"stop": ("a", "b"), "stop_token_ids": (11, 12), "logit_bias": {13: 1.4, -15: -1.6}}
    expected = Sampling(max_tokens=17, logprobs=18, **{**given, **lists})  # type: ignore[arg-type]
    assert parse_completion(completion(**given)).sampling(17, 18) == expected
    assert parse_completion(completion()).sampling(None, None) == Sampling()


def test_usage_in_every_chunk_is_asked_for_together_with_usage() -> None:
    def asked(**options: bool) -> tuple[bool, bool]:
        body = parse_completion(completion(stream_options=options))
        return body.include_usage, body.counts_in_chunks

    assert asked() == (False, False)
    assert asked(include_usage=True) == (True, False)
    assert asked(continuous_usage_stats=True) == (False, False)
    assert asked(include_usage=True, continuous_usage_stats=True) == (True, True)
    assert not parse_completion(completion()).include_usage
    assert not parse_completion(completion()).counts_in_chunks


@pytest.mark.parametrize("shown", [0, 20])
def test_up_to_twenty_candidates_are_shown(shown: int) -> None:
    assert parse_chat(chat(logprobs=True, top_logprobs=shown)).top_logprobs == shown


def test_what_means_nothing_here_is_ignored() -> None:
    parse_completion(completion(user="me", metadata={"a": 1}, service_tier="auto", n=1, best_of=1, echo=False))
    parse_chat(chat(user="me", tools=[], store=True, n=None, response_format={"type": "text"}))


BAD_COMPLETIONS: dict[str, tuple[Any, object]] = {
    "n": (completion(n=2), "n"),
    "best_of": (completion(best_of=3), "best_of"),
    "echo": (completion(echo=True), "echo"),
    "suffix": (completion(suffix="x"), "suffix"),
    "json": (completion(response_format={"type": "json_object"}), "response_format"),
    "max_tokens as text": (completion(max_tokens="5"), "max_tokens"),
    "max_tokens as fraction": (completion(max_tokens=5.5), "max_tokens"),
    "max_tokens beyond int32": (completion(max_tokens=2**31), "max_tokens"),
    "seed beyond int64": (completion(seed=2**70), "seed"),
    "temperature NaN": (b'{"prompt":"hi","temperature":NaN}', "temperature"),
    "temperature as text": (completion(temperature="hot"), "temperature"),
    "stream as number": (completion(stream=1), "stream"),
    "prompt missing": (b"{}", "prompt"),
    "prompt as object": (completion(prompt={"a": 1}), "prompt"),
    "prompt of mixed kinds": (completion(prompt=["a", 1]), "prompt"),
    "stop as number": (completion(stop=5), "stop"),
    "stream_options as list": (completion(stream_options=[]), "stream_options"),
    "unknown field of slo": (completion(slo={"ttft": 5}), "slo.ttft"),
    "ttft_ms as text": (completion(slo={"ttft_ms": "5"}), "slo.ttft_ms"),
    "stage without tpot_ms": (completion(slo={"stages": [{}]}), "slo.stages[0].tpot_ms"),
    "no object": (b"[1]", None),
    "malformed": (b'{"prompt": ', None),
    "no text": (b"\xff\xfe\x00", None),
    "empty": (b"", None),
    "deeply nested": (b"[" * 100_000, None),
}


@pytest.mark.parametrize("case", BAD_COMPLETIONS)
def test_a_completion_that_makes_no_sense_is_refused_by_field(case: str) -> None:
    content, param = BAD_COMPLETIONS[case]
    with pytest.raises(HttpError) as caught:
        parse_completion(content)
    assert refused(caught)[0] == param


BAD_CHATS: dict[str, tuple[Any, object]] = {
    "no messages": (b"{}", "messages"),
    "messages as text": (chat(messages="hi"), "messages"),
    "role missing": (chat(messages=[{"content": "x"}]), "messages[0].role"),
    "tools": (chat(tools=[{"type": "function"}]), "tools"),
    "functions": (chat(functions=[{}]), "functions"),
    "top_logprobs alone": (chat(top_logprobs=3), "top_logprobs"),
    "too many top_logprobs": (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    "negative top_logprobs": (chat(logprobs=True, top_logprobs=-1), "top_logprobs"),
    "logprobs as number": (chat(logprobs=3), "logprobs"),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_a_chat_that_makes_no_sense_is_refused_by_field(case: str) -> None:
    content, param = BAD_CHATS[case]
    with pytest.raises(HttpError) as caught:
        parse_chat(content)
    assert refused(caught)[0] == param


def test_parts_that_are_no_text_and_keys_that_are_no_token() -> None:
    image = [{"type": "image_url", "image_url": {"url": "https://example.org"}}]
    with pytest.raises(HttpError) as caught:
        parse_chat(chat(messages=[{"role": "user", "content": image}])).prompt_of()
    assert refused(caught)[0] == "messages[0].content[0]"
    assert parse_completion(completion(logit_bias={"2147483647": 1})).sampling(1, None).logit_bias == {2**31 - 1: 1.0}
    with pytest.raises(HttpError) as caught:
        parse_completion(completion(logit_bias={"the": 1})).sampling(1, None)
    assert refused(caught)[0] == "logit_bias.the"


MANY = 5000


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CompletionBody, {"prompt": [{}] * MANY}),
        (CompletionBody, {"prompt": [[{}] * MANY]}),
        (CompletionBody, {"prompt": [1] * MANY + [{}]}),
        (CompletionBody, {"prompt": "hi", "stop": [{}] * MANY}),
        (CompletionBody, {"prompt": "hi", "stop_token_ids": ["x"] * MANY}),
        (CompletionBody, {"prompt": "hi", "logit_bias": {str(index): "x" for index in range(MANY)}}),
        (CompletionBody, {"prompt": "hi", "slo": {"stages": [{}] * MANY}}),
        (CompletionBody, {"prompt": "hi", "slo": {"final_stages": ["x"] * MANY}}),
        (CompletionBody, {"prompt": "hi", "slo": {f"field{index}": 1 for index in range(MANY)}}),
        (CompletionBody, {"prompt": "hi", "slo": {"stages": [{f"f{index}": 1 for index in range(MANY)}]}}),
        (ChatBody, {"messages": [{}] * MANY}),
        (ChatBody, {"messages": [{"role": "user", "content": [{}] * MANY}]}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else ",".join(value),
)
def test_a_body_with_very_many_faults_costs_a_few_errors(kind: type[Generation], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps(fields))
    assert caught.value.error_count() < 20


def test_the_bias_at_fault_is_named() -> None:
    with pytest.raises(HttpError) as caught:
        parse_chat(chat(logit_bias={"5": 1.0, "6": "x", "7": "y"}))
    assert caught.value.body["error"]["message"] == "the bias of '6' must be a number in [-100, 100]"
    assert refused(caught) == ("logit_bias", "invalid_type")
    for bias in ("NaN", "1e999", "true", "null"):
        with pytest.raises(HttpError):
            parse_chat(b'{"messages": [], "logit_bias": {"5": %s}}' % bias.encode())


def test_a_body_has_limits_besides_its_bytes() -> None:
    with pytest.raises(HttpError) as caught:
        parse_completion(completion(prompt=[1] * 270_000))
    assert refused(caught) == (None, "body_too_complex")
    assert len(parse_completion(completion(prompt=[1] * 260_000)).prompt_of()) == 260_000
    with pytest.raises(HttpError) as caught:
        parse_chat(chat(messages=[{"role": "user", "content": ""}] * 4097))
    assert refused(caught) == ("messages", "invalid_type")
    with pytest.raises(HttpError) as caught:
        parse_chat(chat(logit_bias={str(index): 1 for index in range(1025)}))
    assert refused(caught) == ("logit_bias", "invalid_type")


@pytest.mark.parametrize("key", ["2147483648", "9999999999", "-9999999999", "1.0", "x" * 100])
def test_a_key_that_is_no_token_id_is_refused(key: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_chat(chat(logit_bias={key: 1.0})).sampling(None, None)
    assert caught.value.status == 400
    assert len(str(caught.value.body)) < 300


@pytest.mark.parametrize("bias", ["1" + "0" * 400, "-101", "100.1", "1e300"])
def test_a_bias_out_of_range_is_refused(bias: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_chat(b'{"messages": [], "logit_bias": {"5": %s}}' % bias.encode())
    assert refused(caught)[0] == "logit_bias"


def test_a_part_of_an_unknown_kind_is_shown_in_part() -> None:
    with pytest.raises(HttpError) as caught:
        parse_chat(chat(messages=[{"role": "user", "content": [{"type": "x" * 100_000}]}])).prompt_of()
    assert len(str(caught.value.body)) < 300


@pytest.mark.parametrize(
    "parse", [lambda **fields: parse_completion(completion(**fields)), lambda **fields: parse_chat(chat(**fields))]
)
class TestContractsInOtherPlaces:
    """A contract that is not under `slo` would promise nothing, and nobody would notice."""

    @pytest.mark.parametrize(
        "name",
        [
            "SLO",
            "Slo",
            "slos",
            "sla",
            "SLI",
            "slo ",
            " slo",
            "_slo",
            "slo_ttft_ms",
            "x-slo-ttft-ms",
            "x_slo",
            "slo:",
            "sol",
            "sloo",
        ],
    )
    def test_a_misspelt_name_is_refused(self, parse: Any, name: str) -> None:
        with pytest.raises(HttpError) as caught:
            parse(**{name: {"ttft_ms": 100}})
        assert refused(caught) == (name, "unknown_parameter")
        assert str(caught.value) == "no such field; the contract is 'slo'"

    @pytest.mark.parametrize("name", ["ttft_ms", "tpot_ms", "max_slowdown", "stages", "on_overload", "profile"])
    def test_a_target_beside_slo_is_refused(self, parse: Any, name: str) -> None:
        with pytest.raises(HttpError) as caught:
            parse(**{name: 100, "slo": {"ttft_ms": 100}})
        assert refused(caught) == (name, "unknown_parameter")

    @pytest.mark.parametrize("name", ["slot_id", "slow", "solo", "slide", "user", "store", "value", "session_id", "S"])
    def test_other_fields_of_other_servers_are_ignored(self, parse: Any, name: str) -> None:
        assert parse(**{name: 100}).slo is None

    def test_only_fields_of_the_body_itself_count(self, parse: Any) -> None:
        said = {"metadata": {"slos": 1, "ttft_ms": 2}, "user": '"slos": 1, \\"sla\\": 2', "slo": {"ttft_ms": 5.0}}
        assert parse(**said).slo.ttft_ms == 5

    def test_a_name_is_found_among_very_many_quotes(self, parse: Any) -> None:
        with pytest.raises(HttpError) as caught:
            parse(user='"' * 40_000, sla=1)
        assert refused(caught) == ("sla", "unknown_parameter")

    def test_nobody_looks_at_very_many_unknown_names(self, parse: Any) -> None:
        with pytest.raises(HttpError) as caught:
            parse(**{f"slow{number}": number for number in range(300)}, sla=1)
        assert refused(caught) == (None, "body_too_complex")
