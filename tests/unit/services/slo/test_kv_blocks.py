"""KV blocks: how many hold a cache, and how many of a prompt another prompt can find."""

from __future__ import annotations

import pytest

from router.requests.prompt_blocks import TokenBlocks
from services.slo.contract import Contract
from services.slo.kv_blocks import blocks_for, shareable_blocks
from simulator.policies.admitted import OfferedBlocks
from simulator.request import OfferedRequest


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_a_block_that_is_begun_counts_whole(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 16) == blocks


@pytest.mark.parametrize(("prompt_tokens", "blocks"), [(1, 0), (16, 0), (17, 1), (32, 1), (33, 2)])
def test_the_block_that_ends_with_the_last_token_of_a_prompt_is_not_shared(prompt_tokens: int, blocks: int) -> None:
    assert shareable_blocks(prompt_tokens, 16) == blocks


@pytest.mark.parametrize("prompt_tokens", [1, 16, 17, 32, 33])
def test_router_and_simulator_name_as_many_blocks_of_a_prompt_as_can_be_shared(prompt_tokens: int) -> None:
    offered = OfferedRequest(
        at_s=7.0,
        application="chat",
        prompt_tokens=prompt_tokens,
        contract=Contract(),
        output_tokens=5,
        prefix=(4, 5, 6),
        prefix_block_tokens=16,
    )
    shared = shareable_blocks(prompt_tokens, 16)
    assert len(TokenBlocks(range(prompt_tokens)).of(16)) == shared
    assert len(OfferedBlocks(offered).of(16)) == shared
