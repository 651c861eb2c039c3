from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from services import audit
from services.config.settings import ModelSettings
from services.model.directory import BUILT_IN_MODEL, locate_model
from tests.support.audit_log import AuditLog
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis for all tests; take a `redis_prefix` each."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def redis_prefix() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of one's own, not started yet."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def audit_log(tmp_path: Path) -> Iterator[AuditLog]:
    """The audit log of the test's own process, in a file."""
    log = AuditLog(tmp_path / "audit.jsonl")
    audit.configure("test", log.path, 1 << 20)
    yield log
    audit.configure("", None, 0)


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """SmolLM2, converted at first use unless a directory is given."""
    return locate_model(ModelSettings(path=os.environ.get("SLOS_TEST_MODEL", BUILT_IN_MODEL)), weights=True).path
