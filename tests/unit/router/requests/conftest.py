from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of one token a byte: id 81 is `a`, and ids from 273 on are words."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
