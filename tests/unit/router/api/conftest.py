from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_model import write_tiny_model
from tests.unit.router.router_support import Desk


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def desk(model_dir: Path) -> Desk:
    return Desk(model_dir)
