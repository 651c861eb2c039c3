"""The file of API keys: strict, replaced whole, read again."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.identity import key_file
from services.identity.api_key import make_key
from services.identity.key_file import KeyFile, KeyFileError, parse_keys, read_keys, write_keys
from services.identity.principal import Role

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = frozenset({Role.CLIENT})
_, KEY = make_key("acme", CLIENT, "ci", datetime(2031, 1, 1, tzinfo=UTC))
_, OTHER = make_key("globex", frozenset({Role.OPERATOR, Role.CLIENT}))
ENTRY: dict[str, Any] = {"id": "0" * 16, "sha256": "a" * 64, "tenant": "acme", "roles": ["client"]}


def text(*entries: dict[str, Any], **more: Any) -> str:
    return json.dumps({"version": 1, "keys": entries, **more})


def test_what_is_written_is_read_and_only_its_owner_may(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    write_keys(path, (KEY, OTHER))
    assert read_keys(path) == {KEY.id: KEY, OTHER.id: OTHER}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "Invalid JSON"),
        ("[]", "an object"),
        ('{"keys": []}', "version"),
        ('{"version": 2, "keys": []}', "version"),
        (text(ENTRY, extra=1), "extra"),
        (text(ENTRY, {**ENTRY, "id": "1" * 16, "expire": "2031-01-01T00:00:00Z"}), "keys.1.expire: Extra"),
        (text({**ENTRY, "id": "0" * 15}), "keys.0.id"),
        (text({**ENTRY, "sha256": "A" * 64}), "keys.0.sha256"),
        (text({**ENTRY, "roles": []}), "keys.0.roles"),
        (text({**ENTRY, "roles": ["root"]}), "keys.0.roles"),
        (text({**ENTRY, "tenant": "a/b"}), "keys.0.tenant"),
        (text({**ENTRY, "expires": "2031-01-01T00:00:00"}), "keys.0.expires"),
        (text({**ENTRY, "expires": 5}), "keys.0.expires"),
        (text(ENTRY, ENTRY), "keys.1.id: 0000000000000000 is the id of an earlier entry"),
    ],
)
def test_a_fault_names_its_entry(content: str, said: str) -> None:
    with pytest.raises(KeyFileError) as raised:
        parse_keys(content)
    assert said in str(raised.value)
    assert "a" * 64 not in str(raised.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*ENTRY, "keys", "version", "x"]), inner),
    )
)
def test_no_other_json_raises_anything_else(value: Any) -> None:
    for content in (json.dumps(value), json.dumps({"version": 1, "keys": [value]})):
        with pytest.raises(KeyFileError):
            parse_keys(content)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(KeyFileError, match=r"keys\.json: No such file"):
        read_keys(path)
    path.write_bytes(b"\xff")
    with pytest.raises(KeyFileError, match="not in UTF-8"):
        read_keys(path)
    monkeypatch.setattr(key_file, "MAX_FILE_BYTES", 10)
    path.write_text(text(ENTRY))
    with pytest.raises(KeyFileError, match="more than 10 bytes"):
        read_keys(path)


def test_more_keys_than_may_be_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "MAX_KEYS", 1)
    with pytest.raises(KeyFileError, match="at most 1 keys"):
        write_keys(tmp_path / "keys.json", (KEY, OTHER))
    assert not list(tmp_path.iterdir())


async def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, (KEY,))
    told: list[tuple[Path, str]] = []
    keys = KeyFile(path, read_again=lambda file, fault: told.append((file, fault)))
    assert (keys.find(KEY.id), keys.find(OTHER.id)) == (KEY, None)
    await keys.look()
    assert told == []
    write_keys(path, (OTHER,))
    await keys.look()
    assert told == [(path, "")]
    assert (keys.find(KEY.id), keys.find(OTHER.id)) == (None, OTHER)
    path.write_text("{")
    with caplog.at_level(logging.ERROR):
        await keys.look()
        await keys.look()
    assert keys.find(OTHER.id) == OTHER
    assert keys.faults == 1
    assert len(told) == 2
    assert str(path) in told[1][1]
    assert len([record for record in caplog.records if "stay valid" in record.message]) == 1
    path.unlink()
    await keys.look()
    assert (keys.find(OTHER.id), keys.faults) == (OTHER, 2)
    os.mkfifo(path)
    async with asyncio.timeout(30):
        await keys.look()
    assert (keys.find(OTHER.id), keys.faults) == (OTHER, 3)
    assert "no regular file" in told[-1][1]
    write_keys(path, ())
    await keys.look()
    assert keys.find(OTHER.id) is None


def test_a_broken_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}")
    with pytest.raises(KeyFileError, match=r"keys\.json"):
        KeyFile(tmp_path / "keys.json")
