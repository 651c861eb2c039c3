"""What a tenant is quoted does not depend on what another tenant's prompts have left in prefix caches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router.admission.undecided import UndecidedRequest
from services.identity.cache_salts import CacheSalts
from services.slo.admission import Assessment
from tests.support.tiny_model import write_tiny_model
from tests.unit.router.router_support import FACTS, START_S, Desk, contract, parsed

PROMPT_TOKENS = 1600
BLOCK_TOKENS = FACTS.compatibility.block_tokens
SALTS = CacheSalts(lambda: bytes(range(32)), {"ours": "", "theirs": "", "friend": "group", "guest": "group"})


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def arrival(tenant: str, request_id: str = "r") -> UndecidedRequest:
    wanted = contract(1.0, 0.1)
    asked = replace(parsed(request_id, PROMPT_TOKENS, wanted), tenant=tenant, cache_salt=SALTS.of(tenant))
    return UndecidedRequest(asked, wanted, START_S)


def sent(desk: Desk, tenant: str) -> None:
    """Have `p1` compute a tenant's prompt twice: with the hit that it then reports it is believed to have it."""
    for cached_tokens in (0, PROMPT_TOKENS - BLOCK_TOKENS):
        blocks = arrival(tenant).parsed.blocks
        desk.core.prefixes.computed("p1", blocks, BLOCK_TOKENS, FACTS.kv_blocks_total, 0, cached_tokens)


def quoted(desk: Desk, tenant: str) -> Assessment:
    answer = desk.core.assess(arrival(tenant).arrival, START_S)
    assert isinstance(answer, Assessment)
    return answer


def test_a_quote_is_that_of_a_cluster_where_nobody_has_sent_the_prompt(model_dir: Path) -> None:
    desk, fresh = Desk(model_dir), Desk(model_dir)
    sent(desk, "ours")
    assert quoted(desk, "theirs") == quoted(fresh, "theirs"), "to the last bit"
    ours, theirs = quoted(desk, "ours").placement.ttft, quoted(desk, "theirs").placement.ttft
    assert ours.bound_s < theirs.bound_s, "the tenant itself is promised the time of a cached prompt"


def test_tenants_of_a_group_are_quoted_what_each_other_has_cached(model_dir: Path) -> None:
    desk, fresh = Desk(model_dir), Desk(model_dir)
    sent(desk, "friend")
    assert quoted(desk, "guest") == quoted(desk, "friend") != quoted(fresh, "guest")
    assert quoted(desk, "group") == quoted(fresh, "group"), "a tenant that is called like the group"
