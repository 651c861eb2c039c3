"""A request that is shown, as an error or a log line may show it, shows nothing that its client wrote."""

from __future__ import annotations

from dataclasses import replace

from services.engine.protocol import EngineRequest, RequestOutput, SamplingOptions, TokenLogprob
from tests.unit.router.router_support import contract, parsed

IDS = (7_654_321, 7_654_322)


def test_neither_prompt_nor_stop_strings_are_shown() -> None:
    request = replace(parsed("mine", 2, contract()), prompt=IDS, stop=("the secret end",))
    assert "mine" in repr(request)
    assert "765432" not in repr(request)
    assert "secret" not in repr(request)


def test_what_goes_to_an_engine_and_comes_back_is_not_shown() -> None:
    logprobs = ((TokenLogprob(IDS[0], -0.1, 1),),)
    for value in (
        EngineRequest("mine", IDS, 0, SamplingOptions(max_tokens=1)),
        RequestOutput("mine", IDS, logprobs=logprobs),
    ):
        assert "mine" in repr(value)
        assert "765432" not in repr(value)
