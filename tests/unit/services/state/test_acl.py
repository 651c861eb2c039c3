"""What each role can and cannot do in a real Redis with the access control lists on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import services.state
from deploy.redis_users import acl_lines, password_file
from services.identity.api_key import make_key
from services.identity.principal import Role
from services.slo.quotas import Quota, QuotaLimits, Rate, Use
from services.state.acl import AclError, RedisRole, acl_line, user_name
from services.state.api_keys import ApiKeyStore
from services.state.cancellations import Cancellations
from services.state.cluster_secret import ClusterSecret
from services.state.connection import StateConnection, StateUnavailableError
from services.state.journal import RequestJournal
from services.state.journal_entry import RequestState
from services.state.quotas import Account, SharedQuotas
from services.state.registry import WorkerRecord, WorkerRegistry, WorkerRole
from tests.support.eventually import eventually
from tests.support.guarded_redis import GuardedRedis

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


PREFIX = "a*[b]"
"""A prefix that would match keys of others if it were taken for a pattern."""
RECORD = WorkerRecord("prefill-0", WorkerRole.PREFILL, "127.0.0.1:4000", "epoch-1", {}, "model", emulated=True)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedRedis]:
    server = GuardedRedis(tmp_path_factory.mktemp("redis"), PREFIX)
    server.start()
    yield server
    server.stop()


def served(redis: GuardedRedis, role: RedisRole, story: Callable[[StateConnection], Awaitable[None]]) -> None:
    """Run a story with the connection of a role."""

    async def run() -> None:
        connection = redis.connection(role)
        try:
            await story(connection)
        finally:
            await connection.close()

    asyncio.run(run())


def test_a_worker_registers_and_leaves(redis: GuardedRedis) -> None:
    async def story(connection: StateConnection) -> None:
        registry = WorkerRegistry(connection, PREFIX, ttl_s=30)
        await connection.ping()
        assert await registry.put(RECORD)
        assert not await registry.put(RECORD)
        await registry.remove(RECORD)

    served(redis, RedisRole.WORKER, story)


def test_commands_and_subcommands_are_known_to_redis_7_0() -> None:
    """Redis refuses to start with an ACL that names what it does not know; subcommands came with later versions."""
    rules = {rule for role in RedisRole for rule in acl_line("p", role, "x").split() if rule.startswith("+")}
    assert not any("|" in rule for rule in rules)


def test_a_router_does_all_that_routers_do(redis: GuardedRedis) -> None:
    _, made = make_key("tenant", frozenset({Role.CLIENT}))

    async def registers(connection: StateConnection) -> None:
        await WorkerRegistry(connection, PREFIX, ttl_s=30).put(RECORD)
        await WorkerRegistry(connection, PREFIX, ttl_s=0.01).put(
            WorkerRecord("gone", WorkerRole.DECODE, "127.0.0.1:4001", "epoch-2", {}, "model", emulated=True)
        )
        await asyncio.sleep(0.05)

    async def stores(connection: StateConnection) -> None:
        await ApiKeyStore(connection, PREFIX).put(made)

    async def story(connection: StateConnection) -> None:
        assert await WorkerRegistry(connection, PREFIX, ttl_s=30).workers() == (RECORD,), "and takes expired ids out"
        await _journal(connection)
        await _cancels(connection)
        await _quotas(connection)
        first, second = (ClusterSecret(connection, PREFIX, "prefix-caches") for _ in range(2))
        await first.agree()
        await second.agree()
        assert first.value() == second.value()
        await reads(connection)

    async def reads(connection: StateConnection) -> None:
        _, keys = await ApiKeyStore(connection, PREFIX).changed(None)
        assert keys is not None
        assert list(keys) == [made.id]

    served(redis, RedisRole.WORKER, registers)
    served(redis, RedisRole.KEYS, stores)
    served(redis, RedisRole.ROUTER, story)
    served(redis, RedisRole.GATEWAY, reads)


async def _journal(connection: StateConnection) -> None:
    journal = RequestJournal(connection, PREFIX, ttl_s=60, flush_interval_s=0.001)
    journal.start()
    assert await journal.reserve("r", "router")
    assert not await RequestJournal(connection, PREFIX, ttl_s=60).reserve("r", "another")
    journal.update("r", state=RequestState.DONE)

    async def written() -> bool:
        entry = await journal.read("r")
        return entry is not None and entry.state is RequestState.DONE

    await eventually(written)
    assert await journal.reserve("left", "router")
    journal.abandon("left")

    async def freed() -> bool:
        return await journal.read("left") is None

    await eventually(freed)
    await journal.close()


async def _cancels(connection: StateConnection) -> None:
    heard: list[str] = []
    cancellations = Cancellations(connection, PREFIX)
    listening = asyncio.create_task(cancellations.listen("router-2", heard.append))

    async def arrives() -> bool:
        return await cancellations.send("router-2", "r")

    await eventually(arrives)
    await eventually(lambda: heard[:1] == ["r"])
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def _quotas(connection: StateConnection) -> None:
    quotas = SharedQuotas(connection, PREFIX, "router")
    account = Account("tenant", QuotaLimits({Quota.REQUESTS: Rate(1.0, 5.0)}, {Quota.CONCURRENT_REQUESTS: 3}))
    await quotas.charge(account, Use({Quota.REQUESTS: 1, Quota.CONCURRENT_REQUESTS: 1}))
    await quotas.beat()
    await quotas.close()


def refused(redis: GuardedRedis, role: RedisRole, *words: str) -> str:
    """Return what Redis says to a role that may not do something."""
    said = ""

    async def story(connection: StateConnection) -> None:
        nonlocal said
        with pytest.raises(StateUnavailableError) as caught:
            await connection.run(lambda one: one.execute_command(*words))  # type: ignore[no-untyped-call]
        said = caught.value.detail

    served(redis, role, story)
    return said


FOR_NOBODY = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "default", "on", "nopass", "+@all", "~*"),
    ("MODULE", "LIST"),
    ("SHUTDOWN",),
    ("MONITOR",),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("SCRIPT", "FLUSH"),
    ("EVAL_RO", "return 1", "0"),
    ("EVALSHA", "0" * 40, "0"),
    ("FCALL", "f", "0"),
    ("SAVE",),
    ("RENAME", f"{PREFIX}:workers", "x"),
    ("GET", "elsewhere:worker:a"),
    ("SET", "ab:worker:a", "x"),
    ("SET", "anything", "x"),
    ("PUBLISH", "elsewhere:cancel:r", "x"),
]


@pytest.mark.parametrize("role", list(RedisRole))
@pytest.mark.parametrize("words", FOR_NOBODY, ids=" ".join)
def test_nobody_can_do_what_no_role_needs(redis: GuardedRedis, role: RedisRole, words: tuple[str, ...]) -> None:
    said = refused(redis, role, *words)
    assert "permission" in said.lower() or "NOPERM" in said


def key(name: str) -> str:
    return f"{PREFIX}:{name}"


OF_OTHERS = [
    (RedisRole.WORKER, ("GET", key("request:r"))),
    (RedisRole.WORKER, ("SET", key("request:r"), "x")),
    (RedisRole.WORKER, ("DEL", key("request:r"))),
    (RedisRole.WORKER, ("GET", key("secret:prefix-caches"))),
    (RedisRole.WORKER, ("DEL", key("api-keys"))),
    (RedisRole.WORKER, ("DEL", key("quota:routers"))),
    (RedisRole.WORKER, ("PUBLISH", key("cancel:router"), "r")),
    (RedisRole.WORKER, ("SUBSCRIBE", key("cancel:router"))),
    (RedisRole.WORKER, ("EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", key("request:r"))),
    (RedisRole.WORKER, ("EVAL", "return redis.call('SET', 'x:y', 'x')", "0")),
    (RedisRole.ROUTER, ("SET", key("worker:prefill-0"), "x")),
    (RedisRole.ROUTER, ("DEL", key("worker:prefill-0"))),
    (RedisRole.ROUTER, ("EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", key("worker:prefill-0"))),
    (RedisRole.ROUTER, ("HSET", key("api-keys"), "id", "x")),
    (RedisRole.ROUTER, ("DEL", key("api-keys"))),
    (RedisRole.ROUTER, ("SET", key("api-keys:version"), "x")),
    (RedisRole.GATEWAY, ("GET", key("worker:prefill-0"))),
    (RedisRole.GATEWAY, ("GET", key("request:r"))),
    (RedisRole.GATEWAY, ("DEL", key("api-keys"))),
    (RedisRole.GATEWAY, ("EVAL", "return 1", "0")),
    (RedisRole.GATEWAY, ("EVAL", "return redis.call('HDEL', KEYS[1], 'x')", "1", key("api-keys"))),
    (RedisRole.KEYS, ("GET", key("secret:prefix-caches"))),
    (RedisRole.KEYS, ("SET", key("worker:prefill-0"), "x")),
    (RedisRole.KEYS, ("DEL", key("request:r"))),
]


@pytest.mark.parametrize(("role", "words"), OF_OTHERS, ids=lambda value: " ".join(value) if value else "")
def test_no_role_touches_what_belongs_to_another(redis: GuardedRedis, role: RedisRole, words: tuple[str, ...]) -> None:
    said = refused(redis, role, *words)
    assert "permission" in said.lower() or "NOPERM" in said or "can't access" in said


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}/0", "redis://:guess@127.0.0.1:{}/0", "redis://x:y@127.0.0.1:{}"])
def test_who_has_no_password_gets_nowhere(redis: GuardedRedis, url: str) -> None:
    async def story() -> None:
        connection = StateConnection(url.format(redis.port), timeout_s=30.0)
        with pytest.raises(StateUnavailableError) as caught:
            await connection.ping()
        await connection.close()
        assert "guess" not in str(caught.value)

    asyncio.run(story())


def test_no_password_is_on_the_command_line_or_open_to_others(tmp_path: Path) -> None:
    server = GuardedRedis(tmp_path / "redis", "slos")
    server.start()
    try:
        line = " ".join(server.command())
        for role in RedisRole:
            file = password_file(tmp_path / "redis", role)
            assert file.read_text().strip() not in line
            assert file.stat().st_mode & 0o777 == 0o600
            assert len(file.read_text().strip()) >= 22, "128 bits or more"
        assert {file.stat().st_mode & 0o077 for file in (tmp_path / "redis").iterdir()} == {0}
        assert (tmp_path / "redis").stat().st_mode & 0o077 == 0
    finally:
        server.stop()


def test_passwords_are_made_once_and_lines_show_none(tmp_path: Path) -> None:
    lines = acl_lines("slos", tmp_path)
    assert acl_lines("slos", tmp_path) == lines
    assert lines[0].startswith("user default off")
    assert [line.split()[1] for line in lines[1:]] == ["slos-router", "slos-worker", "slos-gateway", "slos-keys"]
    text = "\n".join(lines)
    assert not any(password_file(tmp_path, role).read_text().strip() in text for role in RedisRole)
    password_file(tmp_path, RedisRole.WORKER).unlink()
    changed = acl_lines("slos", tmp_path)
    assert [old == new for old, new in zip(lines, changed, strict=True)] == [True, True, False, True, True]


@pytest.mark.parametrize("prefix", ["", "a b", "a\n", "é", '"', "a'b"])
def test_a_prefix_that_no_acl_can_hold_is_refused(prefix: str) -> None:
    with pytest.raises(AclError, match=r"redis\.prefix"):
        user_name(prefix, RedisRole.ROUTER)
    with pytest.raises(AclError):
        acl_line(prefix, RedisRole.ROUTER, "password")


def test_every_command_of_our_scripts_is_some_role_s() -> None:
    sources = Path(services.state.__file__).parent.glob("*.py")
    used = {name.lower() for file in sources for name in re.findall(r"redis\.p?call\('([A-Z]+)'", file.read_text())}
    allowed = {rule[1:] for role in RedisRole for rule in acl_line("p", role, "x").split() if rule.startswith("+")}
    assert used
    assert used <= allowed
