"""Connections to Redis as they are configured."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import ssl
from pathlib import Path
from typing import Any

import pytest

from deploy.certificates import Authority, Issued
from deploy.redis_users import acl_lines, password_file
from services.config.cluster_tls import TlsSettings
from services.config.redis import redis_connection, redis_options
from services.config.settings import RedisSettings, Settings
from services.identity.peer import PeerIdentity, PeerRole
from services.state.acl import RedisRole, user_name
from services.state.cluster_secret import ClusterSecret
from services.state.connection import StateUnavailableError, StateUrlError
from tests.support.guarded_redis import GuardedRedis
from tests.support.tls_proxy import tls_proxy


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"username": "u"}, r"redis\.username needs redis\.password_file"),
        ({"url": "redis://a:hunter2@h/0", "password_file": Path("p")}, "leave out one of them"),
        ({"url": "redis://:hunter2@h/0", "password_file": Path("p"), "username": "u"}, "leave out one of them"),
        ({"url": "", "password_file": Path("p")}, r"redis\.url is empty"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(StateUrlError, match=said) as caught:
        redis_connection(RedisSettings(**{"url": "redis://h:1/0", **options}))
    assert "hunter2" not in str(caught.value)


def test_a_replaced_password_is_read_for_the_next_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = GuardedRedis(tmp_path / "redis", "slos")
    server.start()
    right = password_file(tmp_path / "redis", RedisRole.WORKER).read_text().strip()
    file = tmp_path / "password"
    options = RedisSettings(
        url=server.url, username=user_name("slos", RedisRole.WORKER), password_file=file, timeout_s=30.0
    )

    async def story() -> None:
        connection = redis_connection(options)
        for content, said in (
            (None, "No such file"),
            ("", "one line with a password"),
            ("two\nlines", "one line with a password"),
            ("x" * 5000, "one line with a password"),
            ("wr0ng-one", "WRONGPASS|invalid username-password"),
        ):
            if content is not None:
                file.write_text(content)
            with pytest.raises(StateUnavailableError, match=said):
                await connection.ping()
        file.write_bytes(b"\xff\xfe")
        with pytest.raises(StateUnavailableError, match="one line with a password"):
            await connection.ping()
        file.write_text(f"{right}\n")
        await connection.ping()
        await connection.close()

    try:
        asyncio.run(story())
    finally:
        server.stop()
    assert right not in caplog.text
    assert "wr0ng-one" not in caplog.text


def test_users_of_two_clusters_on_one_server_have_names_of_their_own(tmp_path: Path) -> None:
    names = {line.split()[1] for prefix in ("a", "b") for line in acl_lines(prefix, tmp_path / prefix)}
    assert len(names) == 1 + 2 * len(RedisRole)


LIFETIME = dt.timedelta(days=1)


def issue(authority: Authority, role: PeerRole) -> Issued:
    identity = PeerIdentity(authority.cluster, role)
    return authority.issue(identity, ["localhost", "127.0.0.1"], LIFETIME, dt.datetime.now(dt.UTC))


def context(authority: Authority, issued: Issued) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(issued.path, issued.key)
    made.load_verify_locations(authority.file)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def test_redis_over_tls_with_certificates_on_both_sides(tmp_path: Path, redis_url: str, redis_prefix: str) -> None:
    now = dt.datetime.now(dt.UTC)
    ours, theirs = (Authority.create(tmp_path / name, "blue", LIFETIME, now) for name in ("ours", "theirs"))
    server, own = issue(ours, PeerRole.REDIS), issue(ours, PeerRole.ROUTER)
    plain_port = int(redis_url.rpartition(":")[2].partition("/")[0])

    async def story() -> None:
        async with tls_proxy(plain_port, context(ours, server)) as port:
            good = {
                "url": f"rediss://127.0.0.1:{port}/0",
                "tls_ca": ours.file,
                "tls_certificate": own.path,
                "tls_key": own.key,
                "timeout_s": 30.0,
            }
            connection = redis_connection(RedisSettings.model_validate(good))
            await connection.ping()
            secret = ClusterSecret(connection, redis_prefix, "a")
            await secret.agree()
            await connection.close()
            stranger = issue(theirs, PeerRole.ROUTER)
            for change in (
                {"tls_ca": theirs.file},
                {"tls_ca": None},
                {"tls_certificate": None, "tls_key": None},
                {"tls_certificate": stranger.path, "tls_key": stranger.key},
                {"url": f"rediss://localhost.localdomain:{port}/0"},
            ):
                connection = redis_connection(RedisSettings.model_validate({**good, **change, "timeout_s": 3.0}))
                with pytest.raises(StateUnavailableError):
                    await connection.ping()
                await connection.close()

    asyncio.run(story())


def test_renewed_files_hold_for_the_next_connection_to_redis(tmp_path: Path, redis_url: str) -> None:
    now = dt.datetime.now(dt.UTC)
    ours, theirs = (Authority.create(tmp_path / name, "blue", LIFETIME, now) for name in ("ours", "theirs"))
    own, stranger = issue(ours, PeerRole.ROUTER), issue(theirs, PeerRole.ROUTER)
    plain_port = int(redis_url.rpartition(":")[2].partition("/")[0])
    tls = TlsSettings(ca=ours.file, certificate=own.path, key=own.key)
    options = RedisSettings(url="rediss://127.0.0.1:1/0", timeout_s=30.0)

    async def story() -> None:
        async with tls_proxy(plain_port, context(ours, issue(ours, PeerRole.REDIS))) as port:
            redis = options.model_copy(update={"url": f"rediss://127.0.0.1:{port}/0"})
            connection = redis_connection(redis_options(Settings(redis=redis, tls=tls)))
            await connection.ping()
            good = own.path.read_bytes(), own.key.read_bytes()
            for (certificate, key), works in (
                ((stranger.path.read_bytes(), stranger.key.read_bytes()), False),
                (good, True),
            ):
                own.path.write_bytes(certificate)
                own.key.write_bytes(key)
                await connection._redis.connection_pool.disconnect()
                if works:
                    await connection.ping()
                else:
                    with pytest.raises(StateUnavailableError):
                        await connection.ping()
            await connection.close()

    asyncio.run(story())


def test_redis_takes_the_files_of_the_process_unless_it_has_its_own() -> None:
    tls = TlsSettings(ca=Path("ca.pem"), certificate=Path("c.pem"), key=Path("c.key"))
    own = redis_options(Settings(redis=RedisSettings(url="rediss://h:1/0"), tls=tls))
    assert (own.tls_ca, own.tls_certificate, own.tls_key) == (tls.ca, tls.certificate, tls.key)
    for redis in (RedisSettings(url="redis://h:1/0"), RedisSettings(url="rediss://h:1/0", tls_ca=Path("other.pem"))):
        assert redis_options(Settings(redis=redis, tls=tls)) == redis
        assert redis_options(Settings(redis=redis)) == redis


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "redis://h:1/0", "tls_ca": Path("ca.pem")}, "needs a redis.url that begins with rediss://"),
        ({"url": "rediss://h:1/0", "tls_certificate": Path("c.pem")}, "belong together"),
        ({"url": "rediss://h:1/0", "tls_key": Path("c.key")}, "belong together"),
        ({"url": "rediss://h:1/0", "tls_ca": Path("/nowhere/ca.pem")}, "redis.tls_ca: /nowhere/ca.pem: No such file"),
    ],
)
def test_tls_options_that_cannot_be_used(options: dict[str, Any], said: str) -> None:
    with pytest.raises(StateUrlError, match=re.escape(said)):
        redis_connection(RedisSettings(**options))
