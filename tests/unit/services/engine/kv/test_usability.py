"""The decisions whether another engine's KV cache may be used."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from services.engine.kv.compatibility import Compatibility, foreign_model, mismatches
from services.engine.kv.handle import KvHandle
from services.engine.kv.usability import foreign_handle, pull_deadline_s, too_late, unusable_handle, unusable_terms

OURS = Compatibility("f", "bfloat16", "bfloat16", 16, 1, "LBHNC", "vllm 0.32")
HANDLE = KvHandle("lease", "prefill-0", "epoch", 10.0, 50, 64_000, OURS, "{}", "secret")


@dataclass(frozen=True)
class Terms:
    tokens: int = 50
    prefix_digest: str = "d"


def test_a_good_handle_is_usable() -> None:
    assert unusable_handle(HANDLE, OURS, 50) == ""
    assert unusable_handle(HANDLE, OURS, 51, age_s=4.0, needed_s=5.9) == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lease_id": ""}, "the handle has no lease_id"),
        ({"engine_epoch": ""}, "the handle has no engine_epoch"),
        ({"transfer_params_json": ""}, "the handle has no transfer_params_json"),
        ({"secret": ""}, "the handle has no secret"),
        ({"tokens": 0}, "the handle covers 0 tokens of a request of 50"),
        ({"tokens": 51}, "the handle covers 51 tokens of a request of 50"),
        ({"kv_bytes": -1}, "the handle is for -1 bytes"),
        ({"lease_remaining_s": 0.0}, "the lease has 0.000 s left"),
        ({"lease_remaining_s": -3.0}, "the lease has -3.000 s left"),
        ({"lease_remaining_s": math.nan}, "the lease has nan s left"),
        ({"lease_remaining_s": math.inf}, "the lease has inf s left"),
        ({"compatibility": replace(OURS, block_tokens=32)}, "the engines do not match: block_tokens: 16 != 32"),
    ],
)
def test_a_handle_that_must_not_be_pulled(changes: dict[str, Any], reason: str) -> None:
    assert unusable_handle(replace(HANDLE, **changes), OURS, 50).startswith(reason)


def test_the_lease_runs_on_while_the_handle_waits() -> None:
    assert unusable_handle(HANDLE, OURS, 50, age_s=9.9) == ""
    assert unusable_handle(HANDLE, OURS, 50, age_s=10.0).startswith("the lease has 0.000 s left")


def test_more_than_the_pull_needs_must_be_left() -> None:
    assert unusable_handle(HANDLE, OURS, 50, needed_s=9.5) == ""
    assert unusable_handle(HANDLE, OURS, 50, needed_s=10.0) == (
        "the lease has 10.000 s left, and more than 10.000 s are needed"
    )


def test_every_differing_fact_is_named() -> None:
    theirs = replace(OURS, dtype="float32", tensor_parallel=2)
    assert mismatches(OURS, OURS) == []
    assert mismatches(OURS, theirs) == ["dtype: bfloat16 != float32", "tensor_parallel: 1 != 2"]


def test_only_another_model_is_foreign() -> None:
    assert foreign_model(OURS, replace(OURS, block_tokens=64, engine="another")) == ""
    assert foreign_model(OURS, replace(OURS, model_fingerprint="g")) == "model_fingerprint: f != g"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"worker_id": "prefill-1"}, "it names worker 'prefill-1'"),
        ({"engine_epoch": "another"}, "it names engine 'another'"),
        ({"transfer_params_json": '{"host": "198.51.100.7"}'}, """it is to be claimed at '{"host": "198.51.100.7"}'"""),
    ],
)
def test_a_handle_is_only_good_from_the_worker_that_it_names(changes: dict[str, Any], why: str) -> None:
    assert foreign_handle(HANDLE, "prefill-0", "epoch", "{}") == ""
    assert foreign_handle(replace(HANDLE, **changes), "prefill-0", "epoch", "{}") == why


def test_a_worker_that_does_not_say_where_it_is_claimed_has_no_good_handle() -> None:
    handle = replace(HANDLE, transfer_params_json="")
    assert foreign_handle(handle, "prefill-0", "epoch", "") == "the worker does not say where its leases are claimed"


def test_terms_must_be_those_of_the_handle_and_the_prompt() -> None:
    assert unusable_terms(Terms(), HANDLE, "d") == ""
    assert unusable_terms(Terms(tokens=49), HANDLE, "d") == "the lease covers 49 tokens, not 50 as the handle says"
    assert unusable_terms(Terms(), HANDLE, "e") == "the KV cache belongs to another prompt"


def test_a_pull_must_end_before_the_margin_of_its_lease() -> None:
    assert pull_deadline_s(5000.0, 10.0, 0.5) == 5009.5


def test_what_is_read_at_its_deadline_is_too_late() -> None:
    assert not too_late(5009.5, 5009.4)
    assert too_late(5009.5, 5009.5)
