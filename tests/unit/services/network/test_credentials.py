"""Passwords in URLs are hidden, however the URL is written."""

from __future__ import annotations

import pytest

from services.network.credentials import hide_credentials, without_credentials


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://[::1]:6379/0?protocol=3", "redis://[::1]:6379/0?protocol=3"),
        ("redis://[::1]", "redis://[::1]"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("redis://:hunter2@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        ("rediss://app:hunter2@cache/1", "rediss://app:***@cache/1"),
        ("redis://hunter2@cache", "redis://***@cache"),
        ("redis://cache/0?password=hunter2&db=1", "redis://cache/0?password=***&db=1"),
        ("redis://cache/0?db=1&ssl_password=hunter2", "redis://cache/0?db=1&ssl_password=***"),
        ("redis://app:hunter%402@cache/1", "redis://app:***@cache/1"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter@2@cache:6379/0",
        "redis://:hunter/2@cache:6379/0",
        "redis://:hunter#2@cache:6379/0",
        "redis://:hunter?2@cache:6379/0",
        "redis://app:hunter?2@cache:6379/0",
        "redis://:hunter:2@cache",
        "redis://:hunter2",
        "redis://app:hunter2",
        "redis://:hunter2/0",
        "app:hunter2@cache:6379",
        "redis://cache/0?password=hunter@2",
        "redis://cache/0?x=1&auth_token=hunter2",
        "redis://[:hunter2@cache",
        "redis://:hun://ter2@cache",
    ],
)
def test_no_part_of_a_password_is_shown_of_a_url_that_is_none(url: str) -> None:
    shown = without_credentials(url)
    assert "hunter" not in shown
    assert "ter2" not in shown
    assert "***" in shown


def test_urls_in_a_text() -> None:
    text = (
        "no answer from redis://:hunter2@cache:6379/0, http://app:hunter2@collector:4318; see http://127.0.0.1:8001/."
    )
    assert hide_credentials(text) == (
        "no answer from redis://:***@cache:6379/0, http://app:***@collector:4318; see http://127.0.0.1:8001/."
    )
    assert hide_credentials("mail to a@b:c") == "mail to a@b:c"
