"""A simulated machine that is like a cluster that ran: its step times, its link, its delays."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.load.exchange import Exchange
from benchmarks.validity_noise import Noise, noise_of
from services.engine.step_recording import read_steps
from services.slo.composer import Limits
from services.slo.fit_quality import FitQuality, Row, quality
from services.slo.fitting import fit_all
from services.slo.performance import SMOLLM2_135M_ONE_CORE, PerformanceModel, StepShape
from services.slo.transfer import SHARED_MEMORY_LINK, TransferFit
from simulator.machine import Machine

PRIOR = replace(SMOLLM2_135M_ONE_CORE, origin="placeholder")
BUSY_GAP_S = 0.015
"""Two steps closer together than this follow one another; what lies between belongs to the first."""
PREFILL, DECODE = "prefill-0", "decode-0"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a real engine, on the clock of all processes of the host."""

    began_s: float
    shape: StepShape
    took_s: float
    """To its end."""
    cycle_s: float
    """To where the next could begin: between two steps an engine hands out tokens and takes in requests."""

    @property
    def ended_s(self) -> float:
        return self.began_s + self.took_s


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a cluster was found to be. Seconds."""

    model: PerformanceModel
    quality: FitQuality
    """Quality of the fit on the steps that it was fitted to."""
    noise: Noise
    between_steps_s: float
    latency_s: float
    bytes_per_s: float
    request_delay_s: float
    relay_delay_s: float
    delivery_s: float
    """From where a simulated prefill step ends to the client; negative if tokens are there before."""

    def figures(self) -> dict[str, Any]:
        """For a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "model": {
                "compute": asdict(self.model.coefficients.compute),
                "memory": asdict(self.model.coefficients.memory),
                "form": self.model.coefficients.form.value,
            },
            "noise": asdict(self.noise),
            "quality": {"steps": self.quality.steps, "r2": self.quality.r2, "mape": self.quality.mape},
        }

    def machine(self, kv_tokens: int, kv_bytes_per_token: int, limits: Limits) -> Machine:
        return Machine(
            name="smollm2-135m-one-core, fitted",
            truth=self.model,
            kv_tokens=kv_tokens,
            kv_bytes_per_token=kv_bytes_per_token,
            limits=limits,
            link=replace(SHARED_MEMORY_LINK, latency_s=self.latency_s, bytes_per_s=self.bytes_per_s),
            noise=self.noise.alone,
            drift=self.noise.shared,
            drift_lasts_s=self.noise.lasts_s,
            request_delay_s=self.request_delay_s,
            relay_delay_s=self.relay_delay_s,
        )


class TooLittleError(Exception):
    """Nothing can be fitted to so few steps or requests."""


def steps_of(recording: Path) -> list[Step]:
    """Steps of one engine, in order.

    Raises:
        RecordingError, OSError
    """
    recorded = [(each.step.now_s, each.step.composition.shape, each.took_s) for each in read_steps(recording)]
    gaps_s = [after[0] - before[0] - before[2] for before, after in itertools.pairwise(recorded)]
    busy_s = [gap_s for gap_s in gaps_s if 0 <= gap_s < BUSY_GAP_S]
    usual_s = statistics.median(busy_s) if busy_s else 0.0
    return [
        Step(began_s, shape, took_s, took_s + (gap_s if 0 <= gap_s < BUSY_GAP_S else usual_s))
        for (began_s, shape, took_s), gap_s in zip(recorded, [*gaps_s, math.inf], strict=True)
    ]


def fitted(
    steps: Mapping[str, Sequence[Step]],
    lone: Sequence[Exchange],
    loaded: Sequence[Exchange],
    since_s: float = -math.inf,
    until_s: float = math.inf,
) -> Fitted:
    """
    Args:
        steps: by worker, the time in which these requests ran included.
        lone: one after the other, each alone in the cluster.
        loaded: among others.
        since_s, until_s: step times are learnt from steps that began in between.

    Raises:
        TooLittleError
    """
    used = [[step for step in of if step.shape.tokens and since_s <= step.began_s < until_s] for of in steps.values()]
    rows: list[Row] = [(step.shape, step.cycle_s) for of in used for step in of]
    if len(rows) < 100 or len(lone) < 3:
        raise TooLittleError(f"{len(rows)} steps and {len(lone)} lone requests")
    model = PerformanceModel(fit_all(PRIOR, rows))
    link = TransferFit(SHARED_MEMORY_LINK)
    for exchange in (*lone, *loaded):
        if exchange.claims is not None and exchange.claims.kv_bytes:
            link.observe(exchange.claims.kv_bytes, exchange.claims.kv_transfer_s)
    delays = [found for exchange in lone if (found := _delays(exchange, steps)) is not None]
    if not delays:
        raise TooLittleError("no lone request was handed over")
    request_s, relay_s, delivery_s = (statistics.median(column) for column in zip(*delays, strict=True))
    between_s = statistics.median(step.cycle_s - step.took_s for of in steps.values() for step in of)
    return Fitted(
        model=model,
        quality=quality(rows, model, model),
        noise=noise_of([[(step.began_s, step.cycle_s / model.step_s(step.shape)) for step in of] for of in used]),
        between_steps_s=between_s,
        latency_s=link.model().latency_s,
        bytes_per_s=link.model().bytes_per_s,
        request_delay_s=request_s,
        # A simulated step ends where the next may begin, a little after its tokens are on their way.
        relay_delay_s=max(0.0, relay_s - between_s),
        delivery_s=delivery_s - between_s,
    )


def _delays(exchange: Exchange, steps: Mapping[str, Sequence[Step]]) -> tuple[float, float, float] | None:
    """To the engine, between the engines without the transfer, and back, of a request that was alone."""
    if len(exchange.arrivals) < 2 or exchange.claims is None:
        return None
    first_s, second_s = exchange.arrivals[0][0], exchange.arrivals[1][0]
    prefills = [step for step in steps[PREFILL] if exchange.sent_s <= step.began_s <= first_s and step.shape.tokens]
    decodes = [step for step in steps[DECODE] if exchange.sent_s <= step.began_s <= second_s and step.shape.tokens]
    if not prefills or not decodes:
        return None
    prefilled_s = prefills[-1].ended_s
    return (
        max(0.0, prefills[0].began_s - exchange.sent_s),
        max(0.0, decodes[0].began_s - prefilled_s - exchange.claims.kv_transfer_s),
        max(0.0, first_s - prefilled_s),
    )
