"""What EngineCore tells with a step."""

from __future__ import annotations

import json

from services.engine.kv.handle import KvPull, LeaseOutcome
from services.engine.protocol import EngineLoad
from services.engine.vllm.shared.core_report import CoreReport
from services.slo.performance import StepShape


def test_report_survives_the_wire() -> None:
    report = CoreReport(
        step=7,
        duration_s=0.04,
        shape=StepShape(1, 20, 200.0, 2, 2, 300),
        load=EngineLoad(3, 1, 100, 40, 8),
        closed_leases={"a": LeaseOutcome.PULLED, "b": LeaseOutcome.EXPIRED},
        pulls={"c": KvPull(4096, 0.002)},
        recomputes={"d": "late"},
    )
    assert CoreReport.from_wire(json.loads(json.dumps(report.to_wire()))) == report
