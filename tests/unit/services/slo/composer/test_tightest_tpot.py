"""The tightest TPOT that was promised lately."""

from __future__ import annotations

import math

from services.slo.composer import TightestTpot


def test_the_tightest_of_late_is_remembered() -> None:
    tightest = TightestTpot(remembered_s=10.0)
    assert tightest.tpot_s(0.0) == math.inf
    for now_s, tpot_s in ((0.0, 0.1), (1.0, 0.05), (2.0, 0.2), (3.0, math.inf), (3.0, math.nan)):
        tightest.note(tpot_s, now_s)
    assert tightest.tpot_s(3.0) == 0.05
    assert tightest.tpot_s(11.5) == 0.2
    assert tightest.tpot_s(0.0) == 0.2, "a clock that goes backwards brings nothing back"
    assert tightest.tpot_s(12.5) == math.inf


def test_what_is_no_rate_is_not_remembered() -> None:
    tightest = TightestTpot(remembered_s=10.0)
    tightest.note(math.nan, 100.0)
    assert tightest.tpot_s(100.0) == math.inf
