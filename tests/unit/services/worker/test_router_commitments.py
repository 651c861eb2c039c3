import math

import pytest

from services.rpc.errors import InvalidRequestError
from services.wire import OtherDecodes, OtherPrompts, OtherWork, others_from_wire, others_to_wire
from services.worker import router_commitments
from services.worker.router_commitments import MOST_PROMPTS, MOST_RATES, RouterCommitments
from slos_serve.v1 import worker_pb2


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def commitments(clock: Clock) -> RouterCommitments:
    commitments = RouterCommitments(clock)
    commitments.open("a")
    commitments.open("b")
    return commitments


def prompt(request_id: str, tokens: int, due_in_s: float | None = None, attempt: int = 0) -> worker_pb2.Submit:
    return worker_pb2.Submit(
        request_id=request_id, attempt=attempt, token_ids=range(tokens), export_kv=True, deadline_in_s=due_in_s
    )


def handed_over(request_id: str, promised: int, tpot_s: float | None, attempt: int = 0) -> worker_pb2.Submit:
    return worker_pb2.Submit(
        request_id=request_id,
        attempt=attempt,
        token_ids=[1, 2],
        kv_source=worker_pb2.KvHandle(),
        promised_tokens=promised,
        tpot_s=tpot_s,
    )


def test_nobody_is_told_of_its_own_work(commitments: RouterCommitments) -> None:
    assert commitments.submitted("a", handed_over("r", 500, 0.1)), "nobody knew of it"
    assert commitments.others("a") == OtherWork()
    assert commitments.others("b") == OtherWork((OtherDecodes(0.1, 1, 500),))


def test_what_is_expected_counts_until_it_comes_or_is_called_off(commitments: RouterCommitments) -> None:
    commitments.expect("a", worker_pb2.Expect(request_id="r", promised_tokens=300, tpot_s=0.2))
    assert commitments.others("b") == OtherWork((OtherDecodes(0.2, 1, 300),))
    assert not commitments.submitted("a", handed_over("r", 310, 0.2)), "the others know"
    assert commitments.others("b") == OtherWork((OtherDecodes(0.2, 1, 310),)), "once, not twice"
    commitments.expect("a", worker_pb2.Expect(request_id="r"))
    assert commitments.others("b").requests == 1, "calling off what has come already changes nothing"
    commitments.expect("a", worker_pb2.Expect(request_id="s", promised_tokens=300))
    commitments.expect("a", worker_pb2.Expect(request_id="s"))
    commitments.drop("a", "r", attempt=0)
    assert commitments.others("b") == OtherWork()


def test_prompts_are_told_by_due_time_and_by_what_is_left(commitments: RouterCommitments, clock: Clock) -> None:
    commitments.submitted("a", prompt("late", 400, due_in_s=2.0))
    commitments.submitted("a", prompt("soon", 1000, due_in_s=1.0))
    commitments.submitted("a", prompt("any", 50))
    clock.now_s += 0.5
    commitments.advance("a", "soon", attempt=0, prefilled_tokens=600)
    commitments.advance("a", "late", attempt=1, prefilled_tokens=300)
    assert commitments.others("b").prompts == (
        OtherPrompts(0.5, 400),
        OtherPrompts(1.5, 400),
        OtherPrompts(math.inf, 50),
    )
    commitments.advance("a", "soon", attempt=0, prefilled_tokens=0)
    assert [prompts.tokens for prompts in commitments.others("b").prompts] == [400, 50]


def test_many_prompts_are_told_together_as_due_with_the_first_of_them(commitments: RouterCommitments) -> None:
    for index in range(MOST_PROMPTS + 10):
        commitments.submitted("a", prompt(f"r{index}", 10, due_in_s=1.0 + index))
    told = commitments.others("b").prompts
    assert len(told) == MOST_PROMPTS + 1
    assert told[-1] == OtherPrompts(1.0 + MOST_PROMPTS, 100)


def test_many_rates_are_told_together_at_the_tightest_of_them(commitments: RouterCommitments) -> None:
    for number in range(1, 1001):
        commitments.expect("a", worker_pb2.Expect(request_id=f"r{number}", promised_tokens=10, tpot_s=number / 1000))
    commitments.expect("a", worker_pb2.Expect(request_id="no rate", promised_tokens=7))
    told = commitments.others("b").decodes
    assert len(told) <= MOST_RATES + 1
    assert (sum(each.requests for each in told), sum(each.tokens for each in told)) == (1001, 10_007)
    assert (told[0].tpot_s, told[0].requests) == (0.001, 16)
    assert (told[-1].tpot_s, told[-1].tokens) == (None, 7)


def test_best_effort_commits_to_nothing(commitments: RouterCommitments) -> None:
    assert not commitments.submitted("a", worker_pb2.Submit(request_id="r", token_ids=[1], best_effort=True))
    assert commitments.others("b") == OtherWork()


def test_a_request_that_was_expected_and_comes_as_best_effort_commits_to_nothing_more(
    commitments: RouterCommitments,
) -> None:
    commitments.expect("a", worker_pb2.Expect(request_id="r", promised_tokens=300))
    commitments.submitted("a", worker_pb2.Submit(request_id="r", token_ids=[1], best_effort=True))
    assert commitments.others("b") == OtherWork()


def test_a_prompt_that_is_exported_will_not_decode_here(commitments: RouterCommitments) -> None:
    commitments.submitted("a", prompt("r", 400, due_in_s=2.0))
    assert commitments.others("b") == OtherWork((), (OtherPrompts(2.0, 400),))


def test_a_prompt_that_is_computed_and_decoded_here_counts_as_both(commitments: RouterCommitments) -> None:
    both = worker_pb2.Submit(request_id="r", token_ids=range(40), promised_tokens=90, tpot_s=0.1, deadline_in_s=2.0)
    assert commitments.submitted("a", both)
    assert commitments.others("b") == OtherWork((OtherDecodes(0.1, 1, 90),), (OtherPrompts(2.0, 40),))


def test_a_request_takes_at_least_the_context_that_it_comes_with(commitments: RouterCommitments) -> None:
    commitments.submitted("a", worker_pb2.Submit(request_id="r", token_ids=range(40), promised_tokens=7))
    assert commitments.others("b").tokens == 40


def test_others_must_hear_of_what_they_do_not_know_yet(commitments: RouterCommitments) -> None:
    commitments.expect("a", worker_pb2.Expect(request_id="r", promised_tokens=300))
    with_its_prompt = worker_pb2.Submit(request_id="r", token_ids=range(40), promised_tokens=300)
    assert commitments.submitted("a", with_its_prompt), "it was expected with its KV cache"
    assert commitments.submitted("a", handed_over("r", 300, None, attempt=1)), "it is a new attempt"


def test_the_end_of_an_older_attempt_leaves_the_newer_one(
    commitments: RouterCommitments,
) -> None:
    commitments.submitted("a", handed_over("r", 500, 0.1, attempt=1))
    commitments.drop("a", "r", attempt=0)
    assert commitments.others("b").requests == 1


def test_a_session_that_is_over_commits_to_nothing_and_one_alone_shares_nothing(commitments: RouterCommitments) -> None:
    commitments.submitted("a", handed_over("r", 500, 0.1))
    assert commitments.shared
    commitments.close("a")
    commitments.submitted("a", handed_over("s", 500, 0.1))
    assert commitments.others("b") == OtherWork()
    assert not commitments.shared


def test_the_wire_keeps_what_is_told() -> None:
    others = OtherWork(
        (OtherDecodes(0.1, 3, 500), OtherDecodes(None, 1, 20)), (OtherPrompts(0.25, 7), OtherPrompts(math.inf, 9))
    )
    assert others_from_wire(worker_pb2.WorkerLoad(others=others_to_wire(others))) == others
    assert others_from_wire(worker_pb2.WorkerLoad()) == OtherWork()


@pytest.mark.parametrize("tpot_s", [math.nan, math.inf, -0.1, 0.0, 1e-300, 1e300])
def test_a_pace_that_makes_no_sense_is_refused_and_nobody_is_told_of_it(
    commitments: RouterCommitments, tpot_s: float
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        commitments.expect("a", worker_pb2.Expect(request_id="r", promised_tokens=300, tpot_s=tpot_s))
    assert caught.value.field == "tpot_s"
    with pytest.raises(InvalidRequestError):
        commitments.submitted("a", handed_over("r", 500, tpot_s))
    assert commitments.others("b") == OtherWork()


def test_a_negative_number_of_tokens_is_refused(commitments: RouterCommitments) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        commitments.expect("a", worker_pb2.Expect(request_id="r", promised_tokens=-1))
    assert caught.value.field == "promised_tokens"


def test_a_session_expects_a_bounded_number_of_requests(
    commitments: RouterCommitments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_commitments, "MOST_EXPECTED", 2)
    for request_id in ("r", "s", "r"):
        commitments.expect("a", worker_pb2.Expect(request_id=request_id, promised_tokens=300))
    with pytest.raises(InvalidRequestError):
        commitments.expect("a", worker_pb2.Expect(request_id="t", promised_tokens=300))
    commitments.expect("b", worker_pb2.Expect(request_id="t", promised_tokens=300))
