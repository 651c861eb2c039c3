"""Step times made up with known noise: it must be found again, from what the simulator draws as well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.validity_noise import Noise, Ratios, noise_of
from simulator.machine import machine
from simulator.randomness import EngineRandomness

QUIET = replace(machine("qwen2.5-7b-a100"), noise=0.1)
EVERY_S = 0.05


def drawn(drift: float, lasts_s: float, seed: int, steps: int = 8_000) -> Ratios:
    randomness = EngineRandomness(replace(QUIET, drift=drift, drift_lasts_s=lasts_s), seed)
    return [(EVERY_S * number, randomness.factor(EVERY_S * number)) for number in range(steps)]


def test_noise_of_each_step_by_itself_is_not_taken_for_stretches() -> None:
    found = noise_of([drawn(0.0, 1.0, seed) for seed in (1, 2)])
    assert found.alone == pytest.approx(0.1, rel=0.05)
    assert found.shared < 0.02


@pytest.mark.parametrize("lasts_s", [0.5, 5.0])
def test_stretches_are_told_from_single_steps(lasts_s: float) -> None:
    found = noise_of([drawn(0.2, lasts_s, seed) for seed in (1, 2, 3)])
    assert found.alone == pytest.approx(0.1, rel=0.2)
    assert found.shared == pytest.approx(0.2, rel=0.2)
    assert found.lasts_s == pytest.approx(lasts_s, rel=0.4)


def test_stray_steps_change_little() -> None:
    ratios = [(at_s, 20.0 if number % 97 == 0 else ratio) for number, (at_s, ratio) in enumerate(drawn(0.0, 1.0, 1))]
    assert noise_of([ratios]).alone == pytest.approx(0.1, rel=0.1)


def test_steps_that_all_take_what_the_model_says_have_no_noise() -> None:
    assert noise_of([[(float(second), 1.0) for second in range(100)]]) == Noise(0.0, 0.0, 1.0)


def test_steps_that_share_a_stretch_are_right_on_average() -> None:
    factors = [factor for seed in range(20) for _, factor in drawn(0.3, 0.2, seed)]
    assert np.mean(factors) == pytest.approx(1.0, abs=0.02)
