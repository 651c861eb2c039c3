"""Whether, when and where a call is sent again: decisions, without a router."""

from __future__ import annotations

import grpc
import pytest

from slos_serve import RefusedError, RetryPolicy, SlosServeError, UnavailableError, UnreachableError
from slos_serve.errors import Failure
from slos_serve.retry import REST_S, Attempts, RouterBook


def failure(retry_after_s: float | None = None) -> SlosServeError:
    return RefusedError(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "", "OVERLOADED", retry_after_s=retry_after_s))


def unreachable() -> SlosServeError:
    return UnreachableError(Failure(grpc.StatusCode.UNAVAILABLE, "gone"))


def test_the_wait_has_jitter_upwards_only() -> None:
    policy = RetryPolicy(jitter=0.5)
    waits = [policy.wait_s(failure(1.0), 1, 0.0, None) or 0.0 for _ in range(200)]
    assert min(waits) >= 1.0
    assert max(waits) <= 1.5
    assert len(set(waits)) > 100
    at_once = policy.wait_s(failure(0.0), 1, 0.0, None)
    assert at_once is not None
    assert at_once >= policy.min_wait_s, "no tight loop, whatever the router says"


def test_routers_are_asked_in_turn_and_resting_ones_last() -> None:
    now_s = 100.0
    book = RouterBook(["a", "b", "c"], clock=lambda: now_s)
    firsts = [book.order()[0] for _ in range(6)]
    assert sorted(firsts) == ["a", "a", "b", "b", "c", "c"]
    book.failed("b")
    assert all(book.order()[-1] == "b" for _ in range(6))
    now_s += REST_S + 0.1
    assert {book.order()[0] for _ in range(6)} == {"a", "b", "c"}


def test_a_pin_is_one_router_and_one_other_if_that_is_lost() -> None:
    book = RouterBook(["a", "b", "c"])
    order = book.order("session-1")
    assert all(book.order("session-1") == order for _ in range(5))
    book.failed(order[0])
    assert book.order("session-1")[:2] == order[1:]
    fresh = RouterBook(["a", "b", "c"])
    assert {fresh.order(f"session-{index}")[0] for index in range(50)} == {"a", "b", "c"}


def test_all_routers_out_of_reach() -> None:
    attempts = Attempts(RetryPolicy(), RouterBook(["a", "b"]), timeout_s=None)
    first = attempts.router
    assert attempts.failed(unreachable()) == 0.0
    assert attempts.router != first
    with pytest.raises(UnreachableError):
        attempts.failed(unreachable())


NO_JITTER = RetryPolicy(max_attempts=3, max_wait_s=10.0, min_wait_s=0.5, jitter=0.0)


def test_waits_of_one_call_are_bounded_together() -> None:
    assert NO_JITTER.wait_s(failure(4.0), 1, 6.0, None) == 4.0
    assert NO_JITTER.wait_s(failure(4.0), 1, 6.01, None) is None
    assert NO_JITTER.wait_s(failure(0.0), 1, 0.0, None) == 0.5


def test_a_wait_that_would_last_to_the_deadline_is_not_begun() -> None:
    assert NO_JITTER.wait_s(failure(4.0), 1, 0.0, 4.01) == 4.0
    assert NO_JITTER.wait_s(failure(4.0), 1, 0.0, 4.0) is None


def test_attempts_are_counted() -> None:
    assert NO_JITTER.wait_s(failure(4.0), 2, 0.0, None) == 4.0
    assert NO_JITTER.wait_s(failure(4.0), 3, 0.0, None) is None


def test_the_attempts_of_a_call_share_its_waits_and_its_deadline() -> None:
    now_s = 1000.0
    policy = RetryPolicy(max_attempts=10, max_wait_s=10.0, min_wait_s=0.5, jitter=0.0)
    attempts = Attempts(policy, RouterBook(["a"]), timeout_s=60.0, clock=lambda: now_s)
    assert attempts.left_s == 60.0
    assert [attempts.failed(failure(4.0)), attempts.failed(failure(6.0))] == [4.0, 6.0]
    with pytest.raises(RefusedError):
        attempts.failed(failure(0.5))
    now_s += 59.0
    assert attempts.left_s == pytest.approx(1.0)
    now_s += 2.0
    assert attempts.left_s == 0.0
    assert Attempts(policy, RouterBook(["a"]), timeout_s=None).left_s is None


def test_a_call_is_sent_as_often_as_the_policy_says() -> None:
    attempts = Attempts(NO_JITTER, RouterBook(["a"]), timeout_s=None)
    assert [attempts.failed(failure(1.0)), attempts.failed(failure(1.0))] == [1.0, 1.0]
    with pytest.raises(RefusedError):
        attempts.failed(failure(1.0))


def draining() -> SlosServeError:
    return UnavailableError(Failure(grpc.StatusCode.UNAVAILABLE, "shutting down", "DRAINING", retry_after_s=1.0))


def test_another_router_is_asked_at_once_and_the_last_one_after_the_wait_it_names() -> None:
    now_s = 500.0
    book = RouterBook(["a", "b"], clock=lambda: now_s)
    attempts = Attempts(NO_JITTER, book, timeout_s=None)
    first = attempts.router
    assert attempts.failed(draining()) == 0.0
    second = attempts.router
    assert second != first
    assert attempts.failed(draining()) == 1.0, "nobody else is left: the call waits, and asks all of them again"
    assert attempts.router == second, "the one that rests is asked last"


def test_after_a_refusal_the_next_router_in_turn_is_asked() -> None:
    attempts = Attempts(NO_JITTER, RouterBook(["a", "b"]), timeout_s=None)
    first = attempts.router
    attempts.failed(failure(1.0))
    assert attempts.router != first
    pinned = Attempts(NO_JITTER, RouterBook(["a", "b", "c"]), timeout_s=None, pin="session-1")
    first = pinned.router
    pinned.failed(failure(1.0))
    assert pinned.router == first


def test_a_router_that_answers_rests_no_longer() -> None:
    now_s = 500.0
    book = RouterBook(["a", "b"], clock=lambda: now_s)
    book.failed("a")
    assert [book.order() for _ in range(4)] == [["b", "a"]] * 4
    book.answered("a")
    assert {book.order()[0] for _ in range(4)} == {"a", "b"}
    attempts = Attempts(NO_JITTER, book, timeout_s=None)
    book.failed(attempts.router)
    attempts.succeeded()
    assert {book.order()[0] for _ in range(4)} == {"a", "b"}


def test_a_router_rests_for_five_seconds() -> None:
    now_s = 500.0
    book = RouterBook(["a", "b"], clock=lambda: now_s)
    book.failed("a")
    now_s += 5.0 - 0.01
    assert {book.order()[0] for _ in range(4)} == {"b"}
    now_s += 0.01
    assert {book.order()[0] for _ in range(4)} == {"a", "b"}


def test_a_policy_of_nobody_s_choosing() -> None:
    """Four attempts, half a minute of waiting, never two within 50 ms, and a fifth of jitter."""
    assert RetryPolicy() == RetryPolicy(max_attempts=4, max_wait_s=30.0, min_wait_s=0.05, jitter=0.2)
