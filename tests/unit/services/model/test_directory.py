"""The directory of the configured model: where it is looked for, and what is said where it cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.config.settings import ModelSettings
from services.model import directory
from services.model.directory import ModelNotFoundError, locate_model
from tests.support.tiny_model import write_tiny_model


@pytest.mark.parametrize("place", ["/proc/nowhere/cache", "{}/file/cache"])
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    cache = place.format(tmp_path)
    with pytest.raises(ModelNotFoundError, match=rf"^model\.cache_dir {cache} cannot be written: .*MODEL__CACHE_DIR$"):
        locate_model(ModelSettings(cache_dir=Path(cache)), weights=True)


def test_a_model_that_is_converted_already_needs_no_cache_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / directory.SMOLLM2_NAME)
    monkeypatch.setattr(directory, "is_converted", lambda destination: destination.is_dir())
    located = locate_model(ModelSettings(cache_dir=tmp_path), weights=True)
    assert located.name == directory.SMOLLM2_NAME
    assert sorted(path.name for path in tmp_path.iterdir()) == [directory.SMOLLM2_NAME]


def test_a_home_that_is_none_is_named() -> None:
    with pytest.raises(ModelNotFoundError, match=r"model\.cache_dir ~nobody-of-this-name/cache: "):
        locate_model(ModelSettings(cache_dir=Path("~nobody-of-this-name/cache")), weights=True)
    with pytest.raises(ModelNotFoundError, match=r"model\.path ~nobody-of-this-name/model: "):
        locate_model(ModelSettings(path="~nobody-of-this-name/model"), weights=True)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", json.dumps({"vocab_size": "many"}).encode()])
def test_a_model_whose_files_make_no_sense_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        locate_model(ModelSettings(path=str(tmp_path)), weights=False)


def test_a_directory_in_place_of_a_file_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"config\.json cannot be read"):
        locate_model(ModelSettings(path=str(tmp_path)), weights=False)
    with pytest.raises(ModelNotFoundError, match=r"model\.path: no directory /nowhere"):
        locate_model(ModelSettings(path="/nowhere"), weights=False)
