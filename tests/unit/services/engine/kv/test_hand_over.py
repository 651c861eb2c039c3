"""What every backend of the KV port has to hold to: claims over real sockets, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from services.engine.kv.backend import ClaimRefusedError
from services.engine.kv.claim_server import MAX_SILENT
from services.engine.kv.claims import Claim
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.kv.lease_secret import new_secret, proves
from services.engine.vllm.shared.nixl_terms import DIGEST_KEY, LEASE_DEADLINE_KEY
from tests.support.audit_log import AuditLog
from tests.support.virtual_time import BEGAN_S, elapsed_s, run_virtual, timers_s
from tests.unit.services.engine.kv.kv_support import (
    BACKENDS,
    COMPATIBILITY,
    EMULATED,
    NIXL,
    PROMPT,
    TRANSFER_S,
    Backend,
    TestEngine,
    now_s,
    settle,
    two_engines,
)

every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)

Story = Callable[[TestEngine, TestEngine], Awaitable[None]]


def tell(backend: Backend, story: Story) -> None:
    async def told() -> None:
        async with two_engines(backend) as (exporter, puller):
            await story(exporter, puller)

    run_virtual(told())


async def claimed(puller: TestEngine, handle: KvHandle, token_ids: tuple[int, ...] = PROMPT) -> Claim[Any]:
    return await puller.kv.claim(handle, token_ids, now_s())


async def refusal(puller: TestEngine, handle: KvHandle, token_ids: tuple[int, ...] = PROMPT) -> str:
    with pytest.raises(ClaimRefusedError) as caught:
        await claimed(puller, handle, token_ids)
    return str(caught.value)


@every_backend
def test_a_handle_says_what_is_held_and_until_when(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        assert (handle.lease_id, handle.worker_id, handle.engine_epoch) == ("a", "prefill-0", "epoch")
        assert (handle.tokens, handle.blocks, handle.kv_bytes) == (50, 4, 64_000)
        assert handle.lease_remaining_s == 10.0
        assert handle.compatibility == COMPATIBILITY
        assert exporter.export("b", lease_s=-1.0).lease_remaining_s == 0.0

    tell(backend, story)


@every_backend
def test_a_claim_is_granted_with_what_the_exporter_holds(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        claim = await claimed(puller, exporter.export(), (*PROMPT, 7, 8))
        assert claim.terms.tokens == 50
        assert claim.asked_s == BEGAN_S
        assert claim.deadline_s == BEGAN_S + 9.5, "the margin belongs to nobody"
        claim.give_back()

    tell(backend, story)


@every_backend
def test_only_one_engine_is_granted_a_lease(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        claim = await claimed(puller, handle)
        assert await refusal(puller, handle) == "the lease is claimed by another engine"
        claim.give_back()

    tell(backend, story)


@every_backend
def test_the_time_that_a_handle_has_waited_is_over(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle, received_s = exporter.export(), now_s()
        await asyncio.sleep(4.0)
        claim = await puller.kv.claim(handle, PROMPT, received_s)
        assert claim.deadline_s == BEGAN_S + 9.5
        claim.give_back()
        late = exporter.export("b"), now_s()
        await asyncio.sleep(9.6)
        with pytest.raises(ClaimRefusedError, match=r"the lease has 0\.400 s left"):
            await puller.kv.claim(late[0], PROMPT, late[1])

    tell(backend, story)


def test_the_exporter_knows_better_than_the_handle_how_long_a_lease_lasts() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = replace(exporter.export(lease_s=3.0), lease_remaining_s=30.0)
        claim = await claimed(puller, handle)
        assert claim.deadline_s == BEGAN_S + 2.5
        claim.give_back()
        short = replace(exporter.export("b"), lease_remaining_s=2.0)
        other = await claimed(puller, short)
        assert other.deadline_s == BEGAN_S + 1.5, "what was stated on the way holds too"
        other.give_back()

    tell(NIXL, story)


@every_backend
def test_a_claim_that_is_given_back_keeps_nothing(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        (await claimed(puller, handle)).give_back()
        await settle()
        if backend.one_sided:
            assert exporter.freed == {"a": (LeaseOutcome.RELEASED, 0.0)}
            assert await refusal(puller, handle) == "the lease was released"
        else:
            assert exporter.freed == {}
            (await claimed(puller, handle)).give_back()

    tell(backend, story)


@every_backend
def test_a_claimant_that_falls_silent_keeps_nothing_beyond_the_lease(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        claim = await claimed(puller, handle)
        await asyncio.sleep(9.9)
        assert exporter.freed == {}
        await asyncio.sleep(0.2)
        outcome = LeaseOutcome.RELEASED if backend.one_sided else LeaseOutcome.EXPIRED
        assert exporter.freed == {"a": (outcome, 10.0)}
        claim.give_back()

    tell(backend, story)


def test_a_claimant_that_has_everything_and_says_nothing_is_not_waited_for() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export(lease_s=30.0)
        silent = await claimed(puller, handle)
        await asyncio.sleep(TRANSFER_S + 4.9)
        assert await refusal(puller, handle) == "the lease is claimed by another engine"
        await asyncio.sleep(0.2)
        (await claimed(puller, handle)).give_back()
        silent.give_back()

    tell(EMULATED, story)


def test_a_confirmed_transfer_frees_the_blocks() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        claim = await claimed(puller, exporter.export())
        pull = await puller.moves.receive(claim)
        assert (pull.kv_bytes, pull.transfer_s) == (64_000, pytest.approx(TRANSFER_S))
        await settle()
        assert exporter.freed == {"a": (LeaseOutcome.PULLED, TRANSFER_S)}

    tell(EMULATED, story)


def test_a_confirmed_one_sided_read_is_freed_by_the_engine() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        (await claimed(puller, handle)).confirm()
        await asyncio.sleep(20.0)
        assert exporter.freed == {}
        exporter.kv.closed("a", LeaseOutcome.PULLED)
        assert await refusal(puller, handle) == "the lease was pulled"

    tell(NIXL, story)


@every_backend
def test_an_unclaimed_lease_is_released_at_once(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        exporter.kv.release("a")
        exporter.kv.release("a")
        exporter.kv.release("never exported")
        assert exporter.freed == {"a": (LeaseOutcome.RELEASED, 0.0)}
        assert await refusal(puller, handle) == "the lease was released"

    tell(backend, story)


def test_release_waits_for_the_end_of_a_one_sided_read() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        claim = await claimed(puller, exporter.export())
        exporter.kv.release("a")
        await asyncio.sleep(1.0)
        assert exporter.freed == {}
        claim.give_back()
        await settle()
        assert exporter.freed == {"a": (LeaseOutcome.RELEASED, 1.0)}

    tell(NIXL, story)


@pytest.mark.parametrize("how", ["release", "closed"])
def test_what_is_being_sent_is_cut_off_when_its_lease_ends(how: str) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        claim = await claimed(puller, exporter.export())
        if how == "release":
            exporter.kv.release("a")
        else:
            exporter.kv.closed("a", LeaseOutcome.EXPIRED)
        with pytest.raises(ClaimRefusedError, match=r"the lease was released|the lease has expired"):
            await puller.moves.receive(claim)
        assert elapsed_s() < TRANSFER_S

    tell(EMULATED, story)


def test_leases_expire_one_after_the_other() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        first = exporter.export("a", 10.0)
        await asyncio.sleep(3.0)
        exporter.export("b", 10.0)
        exporter.kv.release("b")
        exporter.export("c", 10.0)
        await asyncio.sleep(20.0)
        assert exporter.freed == {
            "a": (LeaseOutcome.EXPIRED, 10.0),
            "b": (LeaseOutcome.RELEASED, 3.0),
            "c": (LeaseOutcome.EXPIRED, 13.0),
        }
        assert await refusal(puller, replace(first, lease_remaining_s=5.0)) == "the lease has expired"

    tell(EMULATED, story)


def test_a_lease_that_ends_before_an_earlier_one_expires_in_time() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        exporter.export("long", 10.0)
        exporter.export("short", 2.0)
        await asyncio.sleep(20.0)
        assert exporter.freed == {"short": (LeaseOutcome.EXPIRED, 2.0), "long": (LeaseOutcome.EXPIRED, 10.0)}

    tell(EMULATED, story)


def test_no_timer_is_left_when_the_last_lease_has_ended() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        exporter.export("long", 10.0)
        exporter.export("short", 2.0)
        exporter.kv.release("short")
        exporter.kv.release("long")
        assert timers_s() == []

    tell(EMULATED, story)


def test_an_earlier_end_leaves_one_timer() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        for lease_id, lease_s in (("long", 10.0), ("shorter", 5.0), ("shortest", 2.0)):
            exporter.export(lease_id, lease_s)
        assert timers_s() == [BEGAN_S + 2.0]

    tell(EMULATED, story)


def test_an_engine_that_ends_leases_by_itself_is_not_helped() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        await asyncio.sleep(11.0)
        assert exporter.freed == {}
        assert await refusal(puller, handle) == "the lease has -1.000 s left"
        exporter.kv.closed("a", LeaseOutcome.EXPIRED)
        assert await refusal(puller, handle) == "the lease has expired"

    tell(NIXL, story)


@every_backend
def test_the_kv_cache_of_another_prompt_is_not_kept(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        other = (1, *PROMPT[1:])
        assert await refusal(puller, handle, other) == "the KV cache belongs to another prompt"
        await settle()
        if backend.one_sided:
            assert exporter.freed == {"a": (LeaseOutcome.RELEASED, 0.0)}
        else:
            (await claimed(puller, handle)).give_back()

    tell(backend, story)


@every_backend
def test_a_lease_that_is_not_the_handles_is_not_kept(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = replace(exporter.export(), tokens=49)
        assert await refusal(puller, handle) == "the lease covers 50 tokens, not 49 as the handle says"

    tell(backend, story)


def test_an_exporter_that_says_other_bytes_than_its_handle() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = replace(exporter.export(), kv_bytes=63_000)
        assert await refusal(puller, handle) == "the lease is for 64000 bytes, not 63000 as the handle says"

    tell(EMULATED, story)


@every_backend
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"compatibility": replace(COMPATIBILITY, block_tokens=32)},
            "the engines do not match: block_tokens: 16 != 32",
        ),
        ({"lease_remaining_s": 0.5}, "the lease has 0.500 s left"),
        ({"tokens": 60}, "the handle covers 60 tokens of a request of 50"),
        ({"transfer_params_json": "{}"}, "the handle does not say whom to ask for it: host: Field required"),
    ],
)
def test_what_must_not_be_pulled_is_not_claimed(backend: Backend, changes: dict[str, Any], reason: str) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        assert (await refusal(puller, replace(handle, **changes))).startswith(reason)
        (await claimed(puller, handle)).give_back()

    tell(backend, story)


def test_a_pull_that_takes_longer_than_its_lease_is_not_begun() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = replace(exporter.export(), lease_remaining_s=0.5 + TRANSFER_S)
        assert await refusal(puller, handle) == "the lease has 0.574 s left, and more than 0.574 s are needed"

    tell(EMULATED, story)


def test_an_exporter_that_was_started_again_grants_nothing_of_before() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        stale = replace(exporter.export(), engine_epoch="earlier")
        assert await refusal(puller, stale) == "the lease belongs to an engine that is gone"

    tell(EMULATED, story)


@every_backend
def test_a_stopped_exporter_ends_its_claims_and_answers_no_more(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        claim = await claimed(puller, handle)
        await exporter.kv.stop()
        with pytest.raises((EOFError, OSError)):
            await claim.next_line()
        claim.give_back()
        assert "the exporter cannot be reached" in await refusal(puller, handle)
        freed = dict(exporter.freed)
        await asyncio.sleep(20.0)
        assert exporter.freed == freed, "nothing expires any more"

    tell(backend, story)


@contextlib.asynccontextmanager
async def answering(answer: bytes | None) -> Any:
    """A server that answers every line with the same, or never; says where it listens."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil()
            if answer is not None:
                writer.write(answer)
                await writer.drain()
                writer.close()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    yield json.dumps({"host": "127.0.0.1", "port": server.sockets[0].getsockname()[1]})
    server.close()


NONSENSE = [
    b"",
    b"\n",
    b"hello\n",
    b"[]\n",
    b"{}\n",
    b"\xff\xfe\n",
    b"[" * 4000 + b"\n",
    b'{"terms": {}, "remaining_s": 5}\n',
    b'{"terms": [], "remaining_s": 5}\n',
    b'{"terms": {}, "remaining_s": "5"}\n',
    b'{"terms": {}}\n',
    b'{"kind": "arrived"}\n',
    b'{"kind": "granted", "tokens": 50, "kv_bytes": 0}\n',
]


@every_backend
@pytest.mark.parametrize("answer", NONSENSE)
def test_an_exporter_that_talks_nonsense(backend: Backend, answer: bytes) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        async with answering(answer) as address:
            handle = replace(exporter.export(), transfer_params_json=address)
            reason = await refusal(puller, handle)
            assert "\n" not in reason
            assert "makes no sense" in reason or "closed the connection" in reason

    tell(backend, story)


@every_backend
def test_an_exporter_that_says_nothing_is_not_waited_for(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        timeout_s = puller.moves.answer_timeout_s
        async with answering(None) as address:
            handle = replace(exporter.export(), transfer_params_json=address)
            assert await refusal(puller, handle) == f"the exporter did not answer within {timeout_s:g} s"
            assert elapsed_s() == pytest.approx(timeout_s)
            hurried = replace(handle, lease_remaining_s=1.0)
            assert "too close to the end of its lease" in await refusal(puller, hurried)
            assert elapsed_s() == pytest.approx(timeout_s + 0.5)

    tell(backend, story)


@every_backend
@pytest.mark.parametrize(
    "garbage", [b"", b"\n", b"[]\n", b"\xff\xfe\n", b'{"lease_id": 5}\n', b"x" * 100_000, b"[" * 4000 + b"\n"]
)
def test_a_claimant_that_talks_nonsense_costs_nobody_anything(backend: Backend, garbage: bytes) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        reader, writer = await asyncio.open_connection("127.0.0.1", json.loads(handle.transfer_params_json)["port"])
        writer.write(garbage)
        writer.write_eof()
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        writer.close()
        assert exporter.freed == {}
        (await claimed(puller, handle)).give_back()

    tell(backend, story)


STRANGE_SECRETS: list[object] = ["", "guess", "a", "\u00e9", "x" * 100, None, 5, [], {}, True]
"""Secrets of no lease: a guess, what is no ASCII, what is no text."""


@every_backend
@pytest.mark.parametrize("secret", STRANGE_SECRETS)
def test_a_lease_is_granted_to_nobody_without_its_secret(
    backend: Backend, secret: object, caplog: pytest.LogCaptureFixture, audit_log: AuditLog
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets: list[str] = []

    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle, other = exporter.export("a"), exporter.export("b")
        ask = json.loads(puller.moves.claim(handle))
        answers = []
        for lease_id, shown in (("a", secret), ("unknown", secret), ("a", other.secret), ("unknown", other.secret)):
            answers.append(await _asked(handle, {**ask, "lease_id": lease_id, "secret": shown}))
        without = {name: value for name, value in ask.items() if name != "secret"}
        assert await _asked(handle, without) == b""
        assert answers[0] == answers[1], "a stranger cannot tell whether a lease exists"
        assert answers[2] == answers[3]
        assert b"the lease is unknown" in answers[2]
        assert exporter.freed == {}
        (await claimed(puller, handle)).give_back()
        secrets.extend([handle.secret, other.secret])
        assert handle.secret not in caplog.text
        assert handle.secret not in repr((handle, exporter.kv._leases._open, exporter.moves.parse_claim(_line(ask))))

    tell(backend, story)
    told = audit_log.told()
    assert {("lease", "refused", "a"), ("lease", "refused", "unknown")} <= set(told)
    assert {kind for kind, _, _ in told} == {"lease"}
    assert not any(text in audit_log.path.read_text() for text in secrets)


@every_backend
def test_the_secret_of_a_lease_that_has_ended_opens_nothing_else(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        former = exporter.export("a")
        exporter.kv.release("a")
        exporter.freed.clear()
        again = exporter.export("a")
        assert former.secret != again.secret
        assert await refusal(puller, former) == "the lease is unknown"
        exporter.kv.release("a")
        assert await refusal(puller, again) == "the lease was released"
        assert await refusal(puller, replace(again, secret="guess")) == "the lease is unknown"

    tell(backend, story)


def test_secrets_are_long_and_never_the_same() -> None:
    made = {new_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert min(map(len, made)) * 6 >= 128, "a letter of Base64 is six random bits"
    assert not proves("", "")


async def _asked(handle: KvHandle, claim: dict[str, object]) -> bytes:
    """Return the first line that an exporter answers to a claim; empty if it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", json.loads(handle.transfer_params_json)["port"])
    writer.write(_line(claim))
    answer = await reader.readline()
    writer.close()
    return answer


def _line(claim: dict[str, object]) -> bytes:
    return json.dumps(claim).encode() + b"\n"


@every_backend
def test_somebody_who_connects_and_says_nothing_is_hung_up_on(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        reader, writer = await asyncio.open_connection("127.0.0.1", json.loads(handle.transfer_params_json)["port"])
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        assert elapsed_s() == pytest.approx(5.0)
        writer.close()

    tell(backend, story)


@every_backend
def test_who_opens_connections_without_end_is_cut_off_and_takes_nothing_from_claims_under_way(backend: Backend) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        claim = await claimed(puller, handle)
        port = json.loads(handle.transfer_params_json)["port"]
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_SILENT + 20)]
        await settle()
        ended = [reader.at_eof() or reader.exception() is not None for reader, _ in opened]
        assert sum(ended) == 20
        late = exporter.export("b")
        with pytest.raises(ClaimRefusedError):
            await claimed(puller, late)
        if backend.one_sided:
            claim.confirm()
        else:
            await puller.moves.receive(claim)
        await asyncio.sleep(5.0)
        (await claimed(puller, late)).give_back()
        for _, writer in opened:
            writer.close()

    tell(backend, story)


@every_backend
def test_a_claimant_that_speaks_out_of_turn_has_not_confirmed(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        reader, writer = await asyncio.open_connection("127.0.0.1", json.loads(handle.transfer_params_json)["port"])
        early = b"thanks\n" if backend.one_sided else puller.moves.confirmation
        writer.write(puller.moves.claim(handle) + early)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()
        await settle()
        if backend.one_sided:
            assert exporter.freed == {"a": (LeaseOutcome.RELEASED, 0.0)}
        else:
            assert exporter.freed == {}
            (await claimed(puller, handle)).give_back()

    tell(backend, story)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("remote_block_ids", [[]]),
        ("remote_block_ids", [[1]]),
        ("remote_block_ids", [[1, 2, 3, 4, 5]]),
        ("remote_block_ids", [[1, 2], [3, 4]]),
        ("remote_block_ids", "all"),
        ("remote_block_ids", None),
        ("remote_num_tokens", 10_000),
        ("remote_num_tokens", -5),
        ("remote_engine_id", 7),
        ("remote_engine_id", "somebody else's"),
        ("remote_host", "198.51.100.7"),
        ("remote_port", "5600"),
        ("remote_port", True),
        ("tp_size", None),
        (DIGEST_KEY, "another"),
        (DIGEST_KEY, 5),
    ],
)
def test_terms_that_would_kill_or_mislead_an_engine_are_given_back(field: str, value: object) -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        lease = exporter.kv._leases._open["a"]
        lease.offer = replace(lease.offer, params={**lease.offer.params, field: value})
        assert await refusal(puller, handle)
        await settle()
        assert exporter.freed == {"a": (LeaseOutcome.RELEASED, 0.0)}

    tell(NIXL, story)


def test_the_wire_between_vllm_engines() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        address = json.loads(handle.transfer_params_json)
        assert address == {"host": "127.0.0.1", "port": address["port"]}
        reader, writer = await asyncio.open_connection(address["host"], address["port"])
        ask = json.dumps({"lease_id": "a", "secret": handle.secret}).encode() + b"\n"
        writer.write(ask)
        grant = json.loads(await reader.readline())
        assert grant["remaining_s"] == 10.0
        assert grant["terms"][LEASE_DEADLINE_KEY] == BEGAN_S + 10.0
        assert grant["terms"]["remote_block_ids"] == [[1, 2, 3, 4]]
        other_reader, other_writer = await asyncio.open_connection(address["host"], address["port"])
        other_writer.write(ask)
        assert json.loads(await other_reader.readline()) == {"refused": "the lease is claimed by another engine"}
        other_writer.close()
        writer.write(b"pulled\n")
        writer.close()
        await asyncio.sleep(20.0)
        assert exporter.freed == {}

    tell(NIXL, story)


def test_the_wire_between_emulated_engines() -> None:
    async def story(exporter: TestEngine, puller: TestEngine) -> None:
        handle = exporter.export()
        address = json.loads(handle.transfer_params_json)
        reader, writer = await asyncio.open_connection(address["host"], address["port"])
        ask = json.dumps({"lease_id": "a", "secret": handle.secret, "engine_epoch": "epoch"}).encode() + b"\n"
        writer.write(ask)
        grant = json.loads(await reader.readline())
        assert set(grant) == {"kind", "tokens", "kv_bytes", "context_digest"}
        assert (grant["kind"], grant["tokens"], grant["kv_bytes"]) == ("granted", 50, 64_000)
        assert json.loads(await reader.readline()) == {"kind": "arrived"}
        assert elapsed_s() == pytest.approx(TRANSFER_S)
        writer.write(b'{"kind": "confirmed"}\n')
        assert await reader.read() == b""
        writer.close()
        assert exporter.freed == {"a": (LeaseOutcome.PULLED, TRANSFER_S)}
        reader, writer = await asyncio.open_connection(address["host"], address["port"])
        writer.write(ask)
        assert json.loads(await reader.readline()) == {"kind": "gone", "reason": "the lease was pulled"}
        writer.close()

    tell(EMULATED, story)
