"""The parts of a router are built as its configuration says."""

from __future__ import annotations

from router.wiring import admission_options
from services.config.settings import RouterSettings
from services.config.tenants import TenantSettings
from services.slo.admission_options import DEFAULT_OPTIONS, AdmissionOptions


def test_admission_gets_the_options_that_the_configuration_names() -> None:
    settings = RouterSettings(
        local_prefill=True,
        best_effort_patience_s=7.0,
        max_hold_s=0.5,
        room_for_newcomers=2.0,
        admission_price=False,
        max_restarts=9,
    )
    assert admission_options(settings, {}) == AdmissionOptions(
        local_prefill=True, best_effort_patience_s=7.0, max_hold_s=0.5, headroom_requests=2.0, cost_threshold=False
    )


def test_a_configuration_that_says_nothing_is_admission_as_it_ships() -> None:
    assert admission_options(RouterSettings(), {}) == DEFAULT_OPTIONS


def test_the_weights_of_tenants_are_options_of_admission() -> None:
    tenants = {"default": TenantSettings(weight=0.5), "gold": TenantSettings(weight=4.0)}
    options = admission_options(RouterSettings(fair_shares=False), tenants)
    assert not options.fair_shares
    assert dict(options.tenant_weights) == {"default": 0.5, "gold": 4.0}
