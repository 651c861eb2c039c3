"""The streams of a step and the limits they set to it. A step of n streams takes 9.9 + n ms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from services.slo.composer import ComposerPolicy, Limits, SchedulableRequest, StepMeter
from services.slo.composer.kv_budget import KvBudget
from services.slo.composer.request_queues import sort_into_queues
from services.slo.composer.streams import Streams, StreamSelector
from tests.unit.services.slo.composer.works import BLOCK, LIMITS, MODEL, prefill, stream

NOW_S = 100.0
POLICY = ComposerPolicy(buffer_tpots=0.5)


class Selection:
    """A selector, and the meter and the blocks that it works on. Due times are given from now on."""

    def __init__(
        self,
        works: Sequence[SchedulableRequest],
        free_blocks: int = 1000,
        limits: Limits = LIMITS,
        policy: ComposerPolicy = POLICY,
    ) -> None:
        for w in works:
            w.due_s += NOW_S
            w.wanted_s += NOW_S
        queues = sort_into_queues(works, BLOCK, policy.buffer_tpots)
        self.meter = StepMeter(MODEL)
        self.kv = KvBudget(queues, free_blocks, limits)
        self.selector = StreamSelector(queues, self.meter, self.kv, policy, limits, NOW_S)
        self.streams = self.selector.select()


def served(streams: Streams) -> list[str]:
    return [w.request_id for w in streams.served]


def held(streams: Streams) -> list[str]:
    return [w.request_id for w in streams.held]


def test_limits_follow_from_due_times_buffers_and_cap() -> None:
    streams = Streams([], [], due_s=0.05, buffered_due_s=0.03, cap_s=0.02)
    assert (streams.limit_s, streams.buffered_limit_s) == (0.02, 0.02)
    assert (streams.extended_limit_s, streams.extended_buffered_limit_s) == (0.04, 0.03)
    streams = Streams([], [], due_s=0.05, buffered_due_s=0.03)
    assert (streams.limit_s, streams.buffered_limit_s) == (0.05, 0.03)
    assert (streams.extended_limit_s, streams.extended_buffered_limit_s) == (0.05, 0.03)
    assert Streams([], [], due_s=0.01, buffered_due_s=0.03).buffered_limit_s == 0.01


def test_all_are_served_where_all_are_in_time() -> None:
    selection = Selection([stream("a", due_s=0.05, tpot_s=0.04), stream("b", due_s=0.09, tpot_s=0.2)])
    streams = selection.streams
    assert (served(streams), held(streams)) == (["a", "b"], [])
    assert streams.due_s == pytest.approx(0.05)
    assert streams.buffered_due_s == pytest.approx(-0.01), "b wants half of 200 ms ahead of its 90"
    assert streams.cap_s == pytest.approx(0.04), "the tightest TPOT"
    assert selection.meter.seconds() == pytest.approx(0.0119)


def test_without_streams_a_step_is_as_long_as_pays() -> None:
    assert Selection([]).streams.cap_s == pytest.approx(8 * 0.0109)
    assert Selection([], policy=ComposerPolicy(step_cap_s=0.03)).streams.cap_s == pytest.approx(0.03)
    assert Selection([]).streams.due_s == math.inf


def test_the_cap_leaves_something_beside_the_streams() -> None:
    works = [stream(f"s{index}", due_s=0.5, tpot_s=0.02) for index in range(15)]
    assert Selection(works).streams.cap_s == pytest.approx(1.25 * 0.0249)
    loose = [stream("s", due_s=0.5, tpot_s=0.5)]
    assert Selection(loose).streams.cap_s == pytest.approx(8 * 0.0109)
    assert Selection(loose, policy=ComposerPolicy(step_cap_s=0.05)).streams.cap_s == pytest.approx(0.05)


def test_those_that_can_wait_are_held_for_one_that_would_be_late() -> None:
    works = [stream("tight", due_s=0.012, tpot_s=0.02), *(stream(f"s{i}", due_s=0.1 + i) for i in range(4))]
    selection = Selection(works)
    streams = selection.streams
    assert served(streams) == ["tight"]
    assert held(streams) == ["s0", "s1", "s2", "s3"]
    assert streams.due_s == pytest.approx(0.012)
    assert streams.buffered_due_s == pytest.approx(0.002)
    assert selection.meter.seconds() == pytest.approx(0.0109)


def test_one_that_cannot_wait_for_the_step_after_is_served_as_well() -> None:
    """All five take 14.9 ms; what is due within that after the tight one must come now."""
    works = [stream("tight", due_s=0.012, tpot_s=0.02), *(stream(f"s{i}", due_s=0.1) for i in range(3))]
    works.append(stream("next", due_s=0.012 + 0.0148))
    assert served(Selection(works).streams) == ["tight", "next"]
    works[-1].due_s = 0.012 + 0.015
    for w in works[:-1]:
        w.due_s -= NOW_S
    assert served(Selection(works).streams) == ["tight"]


def test_nobody_is_held_where_that_makes_no_one_in_time() -> None:
    """Three that are due at once take 12.9 ms, and they are due in 12.5."""
    tight = [stream(f"t{index}", due_s=0.0125, tpot_s=0.02) for index in range(3)]
    loose = [stream(f"s{index}", due_s=0.1, tpot_s=0.1) for index in range(5)]
    selection = Selection([*tight, *loose])
    streams = selection.streams
    assert len(streams.served) == 8
    assert streams.held == []
    assert streams.due_s == pytest.approx(0.1), "those that are late anyway limit nothing"
    assert streams.buffered_due_s == pytest.approx(0.05)
    assert selection.meter.seconds() == pytest.approx(0.0179)


def test_one_that_is_late_already_does_not_hide_one_that_can_be_in_time() -> None:
    works = [stream("late", due_s=-1.0, tpot_s=0.02), stream("tight", due_s=0.0125, tpot_s=0.02)]
    loose = [stream(f"s{index}", due_s=0.1, tpot_s=0.1) for index in range(5)]
    streams = Selection([*works, *loose]).streams
    assert served(streams) == ["late", "tight"]
    assert streams.due_s == pytest.approx(0.0125)


def test_where_all_are_late_nothing_limits_the_step_but_its_cap() -> None:
    streams = Selection([stream("a", due_s=-1.0, tpot_s=0.03), stream("b", due_s=0.001, tpot_s=0.03)]).streams
    assert (streams.due_s, streams.buffered_due_s) == (math.inf, math.inf)
    assert streams.cap_s == pytest.approx(0.03)
    assert served(streams) == ["a", "b"]


def test_a_wish_is_dropped_where_it_cannot_be_met() -> None:
    met = Selection([stream("a", due_s=0.5, tpot_s=0.1, wanted_s=0.02)]).streams
    assert met.due_s == pytest.approx(0.02)
    missed = Selection([stream("a", due_s=0.5, tpot_s=0.1, wanted_s=0.01)]).streams
    assert missed.due_s == pytest.approx(0.5)


def test_best_effort_that_joins_tightens_the_limits() -> None:
    selection = Selection([stream("a", due_s=0.5, tpot_s=0.2)])
    works = [stream("be", due_s=NOW_S + 0.06, tpot_s=0.04, best_effort=True)]
    streams = selection.selector.joined(selection.streams, works)
    assert served(streams) == ["a", "be"]
    assert streams.due_s == pytest.approx(0.06)
    assert streams.buffered_due_s == pytest.approx(0.04)
    assert streams.cap_s == pytest.approx(0.04)
    assert selection.meter.seconds() == pytest.approx(0.0119)
    drafting = [stream("be", due_s=NOW_S + 0.9, tpot_s=0.01, best_effort=True, draft_tokens=2)]
    unlimited = Selection([stream("a", due_s=0.5, tpot_s=0.2)])
    streams = unlimited.selector.joined(unlimited.streams, drafting)
    assert streams.cap_s == unlimited.streams.cap_s, "it may be served more rarely"
    assert streams.due_s == pytest.approx(0.5)
    tightest = [stream("be", due_s=NOW_S + 0.9, tpot_s=0.001, best_effort=True)]
    selection = Selection([stream("a", due_s=0.5, tpot_s=0.2)])
    assert selection.selector.joined(selection.streams, tightest).cap_s == pytest.approx(1.25 * 0.0119)


def test_streams_that_skip_a_step_still_limit_it() -> None:
    """All three have 200 ms, less 15 of buffer; the step after this one takes 12.9."""
    selection = Selection([stream(name, due_s=0.2 + 0.001 * i, tpot_s=0.03) for i, name in enumerate("abc")])
    streams = selection.selector.holding_those_that_can_wait(selection.streams, 0.03)
    assert served(streams) == ["a"], "one stays, the one that is due first"
    assert held(streams) == ["b", "c"]
    assert streams.due_s == streams.buffered_due_s == pytest.approx(0.185 - 0.0129)
    assert selection.meter.seconds() == pytest.approx(0.0109)


def test_streams_skip_only_what_they_can_wait_for() -> None:
    """Beside one stream and 20 ms of prefills the step takes 30.9 ms, and the one after it 11.9: 42.8 ms."""
    for due_s, can_wait in ((0.0429, True), (0.0427, False)):
        selection = Selection([stream("must", due_s=0.03, tpot_s=1e-9), stream("s", due_s=due_s, tpot_s=1e-9)])
        streams = selection.selector.holding_those_that_can_wait(selection.streams, 0.02)
        assert held(streams) == (["s"] if can_wait else [])
        if can_wait:
            assert streams.due_s == pytest.approx(0.03)
        else:
            assert streams is selection.streams
            assert selection.meter.seconds() == pytest.approx(0.0119)


def test_a_stream_that_waits_for_its_buffer_does_not_skip() -> None:
    selection = Selection([stream("must", due_s=0.03, tpot_s=0.01), stream("s", due_s=0.06, tpot_s=0.05)])
    streams = selection.selector.holding_those_that_can_wait(selection.streams, 0.02)
    assert held(streams) == [], "60 ms are enough, but not less 25 ms of buffer"


def test_tokens_and_blocks_go_to_those_due_first() -> None:
    works = [stream("c", due_s=0.3), stream("a", due_s=0.1), stream("b", due_s=0.2)]
    streams = Selection(works, limits=Limits(2, 8, BLOCK)).streams
    assert (served(streams), held(streams)) == (["a", "b"], ["c"])
    lacking = [stream(name, 8, due_s=due_s, held_blocks=2) for name, due_s in (("b", 0.2), ("a", 0.1))]
    streams = Selection(lacking, free_blocks=1).streams
    assert (served(streams), held(streams)) == (["a"], ["b"])
    assert streams.due_s == pytest.approx(0.1), "what is held limits nothing"


def test_a_block_is_taken_from_what_is_due_later_after_best_effort() -> None:
    def works() -> list[SchedulableRequest]:
        return [
            stream("needy", 8, due_s=0.1, held_blocks=2),
            stream("later", 2, due_s=0.2, held_blocks=1),
            prefill("prompt", 4, 0.3),
        ]

    selection = Selection([*works(), stream("be", 2, tpot_s=math.inf, held_blocks=1)], free_blocks=0)
    assert [w.request_id for w in selection.kv.preempted] == ["be"]
    selection = Selection(works(), free_blocks=0)
    assert [w.request_id for w in selection.kv.preempted] == ["prompt"], "a prefill goes before a stream"
    selection = Selection(works()[:2], free_blocks=0)
    assert [w.request_id for w in selection.kv.preempted] == ["later"]
    assert served(selection.streams) == ["needy"]
    pinned = works()[:2]
    pinned[1].pinned = True
    selection = Selection(pinned, free_blocks=0)
    assert selection.kv.preempted == []
    assert (served(selection.streams), held(selection.streams)) == (["later"], ["needy"])


def test_no_block_is_taken_from_what_is_due_earlier() -> None:
    works = [stream("needy", 8, due_s=0.5, held_blocks=2), prefill("prompt", 4, 0.3)]
    selection = Selection(works, free_blocks=0)
    assert selection.kv.preempted == []
    assert held(selection.streams) == ["needy"]


def test_a_block_is_taken_once() -> None:
    works = [
        stream("a", 8, due_s=0.1, held_blocks=2),
        stream("b", 8, due_s=0.2, held_blocks=2),
        stream("later", 2, due_s=0.9, held_blocks=1),
    ]
    selection = Selection(works, free_blocks=0)
    assert [w.request_id for w in selection.kv.preempted] == ["later"]
    assert (served(selection.streams), held(selection.streams)) == (["a"], ["b"])


def test_landed_kv_is_measured_as_a_prefill_of_one_token() -> None:
    selection = Selection([stream("s", 50, due_s=0.5), prefill("landed", 1, due_s=0.4, computed=20, tpot_s=0.1)])
    shape = selection.meter.shape()
    assert (shape.decode_requests, shape.decode_context_tokens) == (1, 50)
    assert (shape.prefill_requests, shape.prefill_tokens, shape.prefill_attention_pairs) == (1, 1, 20.5)
