"""The public keys of the issuer of tokens: fetched, kept, and fetched again, but not too often."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

from services.identity.jwks import Jwks
from tests.support.tokens import Issuer

if TYPE_CHECKING:
    from pathlib import Path

ISSUER, LATER = Issuer("key-1"), Issuer("key-2")


class Origin:
    """Answers fetches, and counts them."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0
        self.now_s = 5000.0

    async def fetch(self, source: str) -> Any:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def jwks(self) -> Jwks:
        return Jwks("https://issuer.example/keys", clock=lambda: self.now_s, fetch=self.fetch)


async def test_a_new_key_is_fetched_when_a_token_names_it_but_not_more_often_than_allowed() -> None:
    origin = Origin(ISSUER.jwks())
    keys = origin.jwks()
    assert await keys.key("key-1") is not None
    assert (origin.asked, keys.generation) == (1, 1)
    origin.answer = ISSUER.jwks(LATER)
    for _ in range(100):
        assert await keys.key("key-2") is None
    assert origin.asked == 1
    origin.now_s += 10
    found = await keys.key("key-2")
    assert found is not None
    assert found.key_id == "key-2"
    assert (origin.asked, keys.generation) == (2, 2)


async def test_many_that_miss_a_key_share_one_fetch() -> None:
    origin = Origin(ISSUER.jwks())
    keys = origin.jwks()
    found = await asyncio.gather(*(keys.key("key-1") for _ in range(50)))
    assert all(key is not None for key in found)
    assert origin.asked == 1


async def test_who_leaves_does_not_end_the_fetch_of_others() -> None:
    origin = Origin(ISSUER.jwks())
    keys = origin.jwks()
    first, second = asyncio.create_task(keys.key("key-1")), asyncio.create_task(keys.key("key-1"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is not None


async def test_a_withdrawn_key_goes_with_the_next_refresh() -> None:
    origin = Origin(ISSUER.jwks(LATER))
    keys = origin.jwks()
    assert await keys.key("key-1") is not None
    origin.answer = LATER.jwks()
    await keys.refresh()
    assert await keys.key("key-1") is None


async def test_keys_outlive_an_issuer_that_is_away_for_a_while() -> None:
    origin = Origin(ISSUER.jwks())
    keys = origin.jwks()
    await keys.refresh()
    origin.answer = OSError("away")
    origin.now_s += 3600
    await keys.refresh()
    assert keys.faults == 1
    assert await keys.key("key-1") is not None
    origin.now_s += 1
    assert await keys.key("key-1") is None


async def test_what_is_no_set_of_public_keys_is_a_fault_and_changes_nothing() -> None:
    origin = Origin(ISSUER.jwks())
    keys = origin.jwks()
    await keys.refresh()
    shared = {"kty": "oct", "k": "c2VjcmV0", "kid": "key-1", "alg": "HS256"}
    encrypts = {**LATER.public, "use": "enc"}
    nothing_usable: tuple[Any, ...] = (
        *(None, [], {}, {"keys": 5}, {"keys": []}, {"keys": [{}]}, {"keys": [{**LATER.public, "kid": ["a", "list"]}]}),
        *({"keys": [shared]}, {"keys": [encrypts, 7]}, {"keys": [{**LATER.public, "alg": "none"}]}),
    )
    for answer in nothing_usable:
        origin.answer = answer
        await keys.refresh()
    assert keys.faults == len(nothing_usable)
    assert await keys.key("key-1") is not None


async def test_a_token_without_a_key_id_needs_a_set_of_one_key() -> None:
    origin = Origin(ISSUER.jwks())
    keys = origin.jwks()
    assert await keys.key(None) is not None
    origin.answer = ISSUER.jwks(LATER)
    await keys.refresh()
    assert await keys.key(None) is None


async def test_a_file_nested_without_end_is_a_fault_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(ISSUER.jwks()))
    keys = Jwks(str(file))
    await keys.refresh()
    file.write_text("[" * 100_000)
    await keys.refresh()
    assert keys.faults == 1
    assert await keys.key("key-1") is not None


async def test_keys_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    keys = Jwks(str(file))
    assert await keys.key("key-1") is None
    assert keys.faults == 1
    file.write_text(json.dumps(ISSUER.jwks()))
    await keys.refresh()
    assert await keys.key("key-1") is not None
    file.write_text("{")
    await keys.refresh()
    assert (keys.faults, await keys.key("key-1") is not None) == (2, True)
    file.unlink()
    os.mkfifo(file)
    async with asyncio.timeout(30):
        await keys.refresh()
    assert (keys.faults, await keys.key("key-1") is not None) == (3, True)


async def test_an_issuer_that_drips_is_one_fault_and_holds_only_tokens_with_an_unknown_key() -> None:
    answer: Any = ISSUER.jwks()
    drips = asyncio.Event()

    async def fetch(_: str) -> Any:
        if answer is None:
            drips.set()
            await asyncio.Event().wait()
        return answer

    keys = Jwks("https://issuer.example/keys", min_fetch_interval_s=60, fetch_timeout_s=0.2, fetch=fetch)
    await keys.refresh()
    answer = None
    dripping = asyncio.create_task(keys.refresh())
    await drips.wait()
    assert await keys.key("key-1") is not None
    assert not dripping.done(), "a known key waited for the issuer"
    async with asyncio.timeout(30):
        assert await keys.key("key-2") is None
        await dripping
    assert keys.faults == 1
    assert await keys.key("key-1") is not None
    answer = ISSUER.jwks(LATER)
    await keys.refresh()
    assert await keys.key("key-2") is not None


async def test_keys_are_usable_until_they_are_too_old() -> None:
    origin = Origin(ISSUER.jwks())
    keys = origin.jwks()
    assert not keys.usable
    await keys.refresh()
    origin.now_s += 3600
    assert keys.usable
    origin.now_s += 1
    assert not keys.usable
