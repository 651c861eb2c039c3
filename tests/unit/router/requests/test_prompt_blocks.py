"""Names of a prompt's blocks: equal for equal beginnings, and telling nobody what the prompt was."""

from __future__ import annotations

import runpy
from array import array
from hashlib import blake2b
from typing import Any

import pytest

from router.requests import prompt_blocks
from router.requests.parsed_request import request_facts
from router.requests.prompt_blocks import TokenBlocks
from services.slo.contract import Contract
from tests.unit.router.router_support import parsed

PROMPT = tuple(range(500, 548))


def test_full_blocks_are_named_and_the_last_token_stays_out() -> None:
    assert len(TokenBlocks(PROMPT).of(16)) == 2, "an engine always computes the last token, so that 47 of 48 count"
    assert len(TokenBlocks((*PROMPT, 1)).of(16)) == 3
    assert len(TokenBlocks(PROMPT).of(48)) == 0
    assert all(len(bytes.fromhex(name)) == 16 for name in TokenBlocks(PROMPT).of(8))


def test_a_name_stands_for_its_block_and_everything_before_it() -> None:
    names = TokenBlocks(PROMPT).of(8)
    assert len(set(names)) == len(names) == 5
    longer = TokenBlocks([*PROMPT[:40], 7, 8, 9]).of(8)
    assert longer[:5] == names
    other_beginning = TokenBlocks((1, *PROMPT[1:])).of(8)
    assert not set(other_beginning) & set(names)
    assert not set(TokenBlocks((*PROMPT[:39], 1, 1)).of(8)[4:]) & set(names)


def test_names_of_blocks_cannot_be_guessed_from_the_prompt() -> None:
    block = array("q", PROMPT[:16]).tobytes()
    assert TokenBlocks(PROMPT).of(16)[0] != blake2b(block, digest_size=16).hexdigest(), "digests have a key"


def test_prompts_of_different_salts_have_no_block_in_common() -> None:
    salted = {
        salt: set(TokenBlocks(PROMPT, salt).of(8)) for salt in ("", "00" * 15 + "01", "01" + "00" * 15, "ff" * 16)
    }
    assert len(set.union(*salted.values())) == 4 * 5
    assert salted["ff" * 16] == set(TokenBlocks(PROMPT, "ff" * 16).of(8))


def test_each_process_has_a_key_of_its_own() -> None:
    again = runpy.run_path(prompt_blocks.__file__)
    assert list(again["TokenBlocks"](PROMPT).of(16)) != list(TokenBlocks(PROMPT).of(16))


def test_a_request_is_digested_once_however_often_it_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(**options: Any) -> Any:
        made.append(options)
        return blake2b(**options)

    monkeypatch.setattr(prompt_blocks, "blake2b", counted)
    asked = parsed("r", 100, Contract())
    names = request_facts(asked).blocks.of(16)
    assert request_facts(asked).blocks.of(16) is names
    assert len(made) == 1
    other = parsed("s", 100, Contract())
    assert request_facts(other).blocks.of(16) == names, "equal prompts have equal blocks all the same"
