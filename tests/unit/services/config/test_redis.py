"""Connections to Redis as they are configured."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deploy.redis_users import acl_lines, password_file
from services.config.redis import redis_connection
from services.config.settings import RedisSettings
from services.state.acl import RedisRole, user_name
from services.state.connection import StateUnavailableError, StateUrlError
from tests.support.guarded_redis import GuardedRedis


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
