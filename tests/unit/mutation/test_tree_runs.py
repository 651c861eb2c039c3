"""What the end of a run of tests says of a change."""

from __future__ import annotations

import pytest

from tests.mutation.tree import TestRun


def test_code_that_cannot_be_imported_is_noticed() -> None:
    assert TestRun(
        pytest.ExitCode.USAGE_ERROR, "ImportError while loading conftest '/copy/tests/conftest.py'.", 0.1
    ).noticed


def test_a_run_without_a_failed_test_notices_nothing() -> None:
    assert not TestRun(pytest.ExitCode.OK, "3 passed", 0.1).noticed
    assert TestRun(pytest.ExitCode.TESTS_FAILED, "1 failed", 0.1).noticed


@pytest.mark.parametrize("status", [pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED])
def test_a_run_that_did_not_get_to_the_tests_is_an_error(status: int) -> None:
    with pytest.raises(RuntimeError, match="pytest ended with"):
        _ = TestRun(status, "no such option", 0.1).noticed
