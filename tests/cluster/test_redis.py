"""Redis comes late, goes away and comes back; the cluster says so and serves on."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest

from services.state.acl import RedisRole
from services.state.connection import StateConnection, StateUnavailableError
from services.state.journal import RequestJournal
from services.state.journal_entry import RequestState
from tests.cluster.conftest import EMULATED
from tests.support.cluster import ClusterUnderTest, cluster_under_test, greedy
from tests.support.eventually import wait_until
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture
def late_redis(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ClusterUnderTest]:
    """A cluster whose processes were all started, and have missed their Redis, before it is there."""
    # The launcher refuses to start without Redis; processes that others start on other hosts have no launcher.
    monkeypatch.setattr("deploy.local.cluster.check_redis", lambda settings: None)
    config = tmp_path / "cluster.toml"
    text = EMULATED.format(
        model=write_tiny_model(tmp_path / "tiny"), run_dir=tmp_path / "run", prefill=1, decode=1, patience_s=2.0
    )
    config.write_text(text.replace("[redis]", f'[redis]\nurl = "{redis_server.url}"\ntimeout_s = 10'))
    logs = [tmp_path / "run" / f"{name}.log" for name in ("prefill-0", "decode-0", "router")]

    def start_when_missed() -> None:
        wait_until(lambda: all(log.exists() and "is unreachable" in log.read_text() for log in logs), "Redis is missed")
        time.sleep(1.0)  # several tries of each
        redis_server.start()

    starter = threading.Thread(target=start_when_missed)
    starter.start()
    try:
        with cluster_under_test(config) as cluster:
            yield cluster
    finally:
        starter.join()


def test_redis_late_gone_and_back(late_redis: ClusterUnderTest, redis_server: RedisServer) -> None:
    log = late_redis.launcher.settings.launcher.run_dir / "router.log"
    assert log.read_text().count("is unreachable") == 1, "said once, not with every try"
    expected = late_redis.generate(greedy([20, 21], 30)).token_ids

    redis_server.stop()
    wait_until(lambda: not late_redis.state().redis_connected, "the router notices")
    assert "Redis at" in " ".join(late_redis.state().warnings)
    assert late_redis.generate(greedy([20, 21], 30)).token_ids == expected, "serving goes on"
    first = late_redis.stub.Generate(greedy([20], 4000, request_id="same"), timeout=60)
    next(iter(first))
    with pytest.raises(grpc.RpcError, match="in use"):
        list(late_redis.stub.Generate(greedy([20], 5, request_id="same"), timeout=60))
    first.cancel()

    redis_server.start()
    wait_until(lambda: late_redis.state().redis_connected, "the router notices that it is back")
    assert late_redis.generate(greedy([20, 21], 30)).token_ids == expected
    late_redis.kill("decode-0")
    time.sleep(1.5)  # the record of the killed worker expires
    late_redis.start_again("decode-0")
    late_redis.wait_ready(2)
    assert late_redis.generate(greedy([20, 21], 30)).token_ids == expected


def test_the_journal_tells_what_became_of_a_request(emulated: ClusterUnderTest) -> None:
    emulated.generate(greedy([20, 21], 12, request_id="journalled"))

    async def entry() -> RequestState | None:
        connection = StateConnection(emulated.launcher.redis_url, timeout_s=2.0)
        try:
            found = await RequestJournal(connection, "slos", ttl_s=60.0).read("journalled")
            if found is not None and found.state is RequestState.DONE:
                assert found.tokens_delivered == 12
                assert found.prefill_worker_id.startswith("prefill-")
                assert found.decode_worker_id.startswith("decode-")
                assert found.decode_engine_epoch
            return None if found is None else found.state
        finally:
            await connection.close()

    wait_until(lambda: asyncio.run(entry()) is RequestState.DONE, "the journal says DONE", timeout_s=10)


def test_the_launcher_s_redis_has_users_whose_rights_suffice_and_whose_passwords_nobody_sees(
    emulated: ClusterUnderTest,
) -> None:
    emulated.generate(greedy([20, 21], 12, request_id="with-users"))
    run_dir = Path(emulated.launcher.settings.launcher.run_dir)
    passwords = [file.read_text().strip() for file in (run_dir / "redis").glob("*.password")]
    assert len(passwords) == len(RedisRole)
    logs = {file.name: file.read_text(errors="replace") for file in run_dir.glob("*.log")}
    assert {"router.log", "prefill-0.log", "decode-0.log"} <= logs.keys()
    assert [name for name, text in logs.items() if "NOPERM" in text or "no permissions" in text] == []
    told = [*logs.values(), (run_dir / "cluster.json").read_text()]
    for process in [emulated.router, *emulated.workers.values()]:
        running = process.process()
        assert running is not None
        told += [" ".join(running.cmdline()), " ".join(running.environ().values())]
    assert [text for text in told for password in passwords if password in text] == []
    lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    assert any("valkey-server" in line for line in lines)
    assert [line for line in lines for password in passwords if password in line] == []

    async def without_password() -> None:
        connection = StateConnection(re.sub("//.*@", "//", emulated.launcher.redis_url), timeout_s=2.0)
        with pytest.raises(StateUnavailableError):
            await connection.ping()
        await connection.close()

    asyncio.run(without_password())
