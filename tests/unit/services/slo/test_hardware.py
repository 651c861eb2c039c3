"""Profiles of others: every row is there, marked by origin, and predicts what its source says."""

from __future__ import annotations

import pytest

from services.slo.hardware import PROFILES, UnknownHardwareError, hardware_profile
from services.slo.performance import PerformanceModel, StepForm, StepShape


@pytest.mark.parametrize(
    ("name", "thousand_tokens_ms"),
    [
        ("opt-6.7b-a100", 93.6),
        ("opt-13b-2xa100", 103.9),
        ("opt-13b-h100", 69.2),
        ("opt-30b-4xa100", 131.0),
        ("opt-125m-a100", 62.5),
        ("toolllama-2-7b-a100", 93.2),
        ("r1-distill-qwen-1.5b-a100", 309.6),
        ("r1-distill-qwen-7b-a100", 74.5),
        ("qwen2.5-32b-4xa100", 150.5),
    ],
)
def test_a_thousand_tokens_take_what_the_source_says(name: str, thousand_tokens_ms: float) -> None:
    model = PerformanceModel(hardware_profile(name).coefficients)
    step_ms = model.step_s(StepShape(prefill_requests=1, prefill_tokens=1000)) * 1e3
    assert step_ms == pytest.approx(thousand_tokens_ms, abs=0.06)


def test_two_line_rows_are_rooflines() -> None:
    distill = PerformanceModel(hardware_profile("r1-distill-qwen-7b-a100").coefficients)
    assert distill.coefficients.form is StepForm.ROOFLINE
    assert distill.decode_step_s(1, 100) == pytest.approx(0.030)
    opt = PerformanceModel(hardware_profile("opt-6.7b-drafted-a100").coefficients)
    drafted = StepShape(decode_requests=10, decode_tokens=80, draft_steps=7)
    assert opt.step_s(drafted) == pytest.approx(1e-3 * (3.033 + 7 * 3.465) + 80 * 75.228e-6)


def test_five_term_rows_count_requests_and_context() -> None:
    model = PerformanceModel(hardware_profile("qwen2.5-7b-a100").coefficients)
    assert model.decode_step_s(64, 64_000) == pytest.approx(14e-3 + 64 * (51e-6 + 16.9e-6) + 64_000 * 80e-9)


def test_every_row_is_marked() -> None:
    assert len(PROFILES) == 1 + 19 + 14
    origins = {name: profile.origin for name, profile in PROFILES.items()}
    assert {name for name, origin in origins.items() if origin == "measured"} == {"smollm2-135m-cpu"}
    assert {name for name, origin in origins.items() if origin == "copied"} == {"opt-13b-a100"}
    assert {name for name, origin in origins.items() if origin == "placeholder"} == {
        "deepseek-r1",
        "qwen2.5-0.5b-drafted-a100",
        "qwen2.5-1.5b-drafted-a100",
        "unknown-model",
        "llama-3.1-70b",
        "test-fixture",
    }
    assert set(origins.values()) <= {"measured", "fitted", "copied", "placeholder"}


def test_kv_bytes_are_known_where_the_model_is() -> None:
    assert hardware_profile("smollm2-135m-cpu").kv_bytes_per_token == 23_040
    assert hardware_profile("qwen2.5-7b-a100").kv_bytes_per_token == 57_344
    assert hardware_profile("unknown-model").kv_bytes_per_token is None


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UnknownHardwareError, match="opt-13b-h100"):
        hardware_profile("abacus")
