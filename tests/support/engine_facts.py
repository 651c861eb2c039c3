"""The facts of a small engine, for tests that make no use of most of them."""

from __future__ import annotations

from services.engine.kv.compatibility import Compatibility
from services.engine.protocol import EngineFacts
from services.slo.performance import PerformanceCoefficients

FACTS = EngineFacts(
    engine_epoch="epoch",
    compatibility=Compatibility("fingerprint", "bfloat16", "auto", 32, 1, "HND", "test double"),
    model="model",
    max_context_tokens=1000,
    vocabulary_size=100,
    eos_token_ids=(0,),
    kv_blocks_total=64,
    kv_bytes_per_token=10,
    max_step_tokens=512,
    max_running_requests=4,
    kv_lease_s=30.0,
    performance=PerformanceCoefficients(0.01, 0.0, 0.0, 0.0, "placeholder"),
    emulated=False,
)
