"""Digests that tell models apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.model.fingerprint import model_fingerprint


def model(directory: Path, weights: bytes, config: str = "{}") -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(config)
    (directory / "model.safetensors").write_bytes(len(b"{}").to_bytes(8, "little") + b"{}" + weights)
    return directory


def test_tells_models_apart(tmp_path: Path) -> None:
    weights = bytes(range(256)) * 5000
    first = model_fingerprint(model(tmp_path / "a", weights))
    assert model_fingerprint(model(tmp_path / "b", weights)) == first
    assert model_fingerprint(model(tmp_path / "c", weights[:-1] + b"x")) != first
    assert model_fingerprint(model(tmp_path / "d", weights + b"x")) != first
    assert model_fingerprint(model(tmp_path / "e", weights, '{"rope": 1}')) != first


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        model_fingerprint(tmp_path)
