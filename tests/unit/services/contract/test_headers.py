"""Contracts in headers and metadata: what is read, what is written, and which header is named in errors."""

from __future__ import annotations

import pytest

from services.contract.headers import (
    CALLER_HEADERS,
    CONTRACT_HEADERS,
    Caller,
    caller_of_headers,
    check_names,
    contract_headers,
    contract_of_headers,
    target_headers,
)
from services.slo.contract import ContractError
from slos_serve import Contract, DecodeTarget, OnOverload, PrefillTarget


def test_headers_that_name_nothing_ask_for_nothing() -> None:
    assert contract_of_headers({"content-type": "application/json", "x-slo-verdict": "refused"}) == Contract()


def test_times_are_milliseconds_under_the_names_of_both_families() -> None:
    wanted = Contract.latency(ttft_s=0.2, tpot_s=0.05)
    assert contract_of_headers({"x-slo-ttft-ms": "200", "x-slo-tpot-ms": " 50 "}) == wanted
    assert contract_of_headers({"x-llm-d-slo-ttft-ms": "200.0", "x-llm-d-slo-tpot-ms": "5e1"}) == wanted


def test_our_own_name_of_a_header_wins_over_that_of_others() -> None:
    both = {"x-llm-d-slo-ttft-ms": "900", "x-slo-ttft-ms": "200"}
    assert contract_of_headers(both) == Contract.latency(ttft_s=0.2)


def test_profile_and_choice_on_overload() -> None:
    assert contract_of_headers({"x-slo-profile": "coder", "x-slo-on-overload": " Refuse"}) == Contract(
        profile="coder", on_overload=OnOverload.REFUSE
    )
    assert contract_of_headers({"x-slo-on-overload": "best_effort"}).on_overload is OnOverload.BEST_EFFORT


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("soon", "'soon' is no number of milliseconds"),
        ("", "'' is no number of milliseconds"),
        ("5 ms", "'5 ms' is no number of milliseconds"),
        ("x" * 99, f"'{'x' * 39}…' is no number of milliseconds"),
        ("-5", "must be finite and positive; got -5"),
        ("0", "must be finite and positive; got 0"),
        ("nan", "must be finite and positive; got nan"),
        ("inf", "must be finite and positive; got inf"),
        ("1e999", "must be finite and positive; got 1e999"),
        ("-" + "1" * 99, f"must be finite and positive; got -{'1' * 38}…"),
    ],
)
@pytest.mark.parametrize("name", ["x-slo-ttft-ms", "x-slo-tpot-ms", "x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms"])
def test_a_header_that_is_no_latency_is_refused_by_its_name(name: str, text: str, detail: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract_of_headers({name: text})
    assert (caught.value.path, caught.value.detail) == (name, detail)


@pytest.mark.parametrize("text", ["explode", "", "best effort"])
def test_an_unknown_choice_on_overload_is_refused(text: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract_of_headers({"x-slo-on-overload": text})
    assert caught.value.path == "x-slo-on-overload"
    assert caught.value.detail == f"must be best_effort or refuse; got {text!r}"


def test_the_caller_is_named_by_the_first_header_that_names_it() -> None:
    assert caller_of_headers({}) == Caller("", "")
    assert caller_of_headers({"x-slo-application": "chat", "x-tenant-id": "a"}) == Caller("chat", "a")
    tenants = {"x-gateway-inference-fairness-id": "c", "x-llm-d-inference-fairness-id": "b"}
    assert caller_of_headers(tenants).tenant == "b"
    assert caller_of_headers({**tenants, "x-tenant-id": "a"}).tenant == "a"
    assert caller_of_headers({"x-gateway-inference-fairness-id": "c"}).tenant == "c"


def test_the_names_that_are_read_are_known() -> None:
    check_names((*CONTRACT_HEADERS, *CALLER_HEADERS, "content-type", "x-request-id"))


@pytest.mark.parametrize(
    "name",
    ["x-slo", "x-slo-ttft", "x-slo-tttft-ms", "x-slos-ttft-ms", "x-slo_ttft_ms", "x-slo-verdict", "x-llm-d-slo-ttft"],
)
def test_a_misspelt_header_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_names(["content-type", name])
    assert caught.value.path == name
    for known in ("x-slo-profile", "x-slo-ttft-ms", "x-llm-d-slo-tpot-ms", "x-slo-on-overload", "x-slo-application"):
        assert known in caught.value.detail


@pytest.mark.parametrize("name", CALLER_HEADERS)
@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("t" * 257, "at most 256 characters; got 257"),
        ("acmé", "must be printable ASCII"),
        ("a\x00b", "must be printable ASCII"),
        ("a\tb", "must be printable ASCII"),
    ],
)
def test_a_caller_that_makes_no_sense_is_refused_by_the_name_of_the_header(name: str, text: str, detail: str) -> None:
    with pytest.raises(ContractError) as caught:
        caller_of_headers({name: text})
    assert (caught.value.path, caught.value.detail) == (name, detail)


def test_what_is_written_is_what_is_read() -> None:
    contract = Contract(
        profile="coder",
        prefill=PrefillTarget(ttft_s=0.25),
        decode=(DecodeTarget(0.0125),),
        on_overload=OnOverload.REFUSE,
    )
    headers = contract_headers(contract)
    assert headers == {
        "x-slo-profile": "coder",
        "x-slo-ttft-ms": "250.0",
        "x-slo-tpot-ms": "12.5",
        "x-slo-on-overload": "refuse",
    }
    assert contract_of_headers(headers) == contract
    assert contract_headers(Contract()) == {}


def test_of_several_stages_the_tightest_is_written_and_a_slowdown_is_not() -> None:
    stages = (DecodeTarget(0.1, "x"), DecodeTarget(0.02, "y"), DecodeTarget(0.3))
    assert target_headers(Contract(profile="p", prefill=PrefillTarget(max_slowdown=3), decode=stages)) == {
        "x-slo-tpot-ms": "20.0"
    }


def test_a_figure_is_written_to_the_microsecond() -> None:
    assert target_headers(Contract.latency(ttft_s=0.1234567)) == {"x-slo-ttft-ms": "123.457"}
