"""The credential of commands: from a file or the environment, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.config.load import ConfigurationError, load_settings
from services.config.own_credential import MAX_FILE_BYTES, own_credential

KEY = "sk-0123456789abcdef"


def test_the_environment_says_it_and_a_file_says_it_better(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-from-a-file\n")
    assert own_credential(None, {}) is None
    assert own_credential(None, {"SLOS_SERVE_API_KEY": " \n"}) is None
    assert own_credential(None, {"SLOS_SERVE_API_KEY": f"{KEY}\n"}) == KEY
    assert own_credential(file, {"SLOS_SERVE_API_KEY": KEY}) == "sk-from-a-file"


def test_the_variable_is_no_option_of_the_configuration() -> None:
    assert load_settings(None, None, {"SLOS_SERVE_API_KEY": KEY}) == load_settings(None, None, {})


@pytest.mark.parametrize(
    "content", [b"", b"\n", f"{KEY} {KEY}".encode(), "schlüssel".encode(), b"x" * (MAX_FILE_BYTES + 1)]
)
def test_a_file_that_holds_no_credential_is_named_and_not_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        own_credential(file, {"SLOS_SERVE_API_KEY": KEY})
    assert str(file) in str(raised.value)
    assert KEY not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_a_file_that_is_not_there_is_no_reason_to_ask_without(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        own_credential(tmp_path / "none", {"SLOS_SERVE_API_KEY": KEY})
