"""A table that forgets what was not used for longest."""

from __future__ import annotations

import pytest

from services.slo.recent import RecentlyUsed


def test_the_entry_not_used_for_longest_is_forgotten() -> None:
    table: RecentlyUsed[str, int] = RecentlyUsed(2)
    assert table.get("a") is None
    assert table.get_or_make("a", lambda: 1) == 1
    assert table.get_or_make("b", lambda: 2) == 2
    assert table.get_or_make("a", lambda: 9) == 1, "it is there already"
    assert len(table) == 2
    table.get_or_make("c", lambda: 3)
    assert sorted(table) == ["a", "c"]
    assert table.get("a") == 1
    table.get_or_make("d", lambda: 4)
    assert list(table) == ["a", "d"]


def test_it_holds_one_entry_at_least() -> None:
    table: RecentlyUsed[str, int] = RecentlyUsed(1)
    table.get_or_make("a", lambda: 1)
    table.get_or_make("b", lambda: 2)
    assert list(table) == ["b"]
    with pytest.raises(ValueError, match="limit"):
        RecentlyUsed(0)
