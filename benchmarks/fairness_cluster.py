"""Fair shares of promises on a cluster of real processes: the shipped router, and engines that are emulated.

The same requests are sent to a cluster without fair shares and to one with them, one after the other.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.load.exchange import Exchange, Verdict
from benchmarks.load.schedule import Bounds, Schedule, of_applications
from benchmarks.machine import machine, write_records
from benchmarks.promises import EMULATED, WARM_UP_LOAD, mean_prefill_s, offer
from deploy.local.cluster import LocalCluster
from services.config.load import load_settings

log = logging.getLogger(__name__)

WARM_UP_S = 10.0
"""Seconds of load before the measured one, in which step times are learnt."""


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """What became of the requests of one tenant."""

    load: float
    """Multiple of what the workers can compute of prompts at all."""
    seed: int
    fair_shares: bool
    tenant: str
    offered: int
    promised: int
    kept: int
    total_offered: int
    total_promised: int


def run(
    json: Path | None,
    load: float,
    workers: int,
    seconds: float,
    arrivals: Mapping[str, float],
    weights: Mapping[str, float],
    seeds: Sequence[int],
) -> None:
    """Print what every tenant was promised without fair shares and with them, and write the records where asked."""
    console = Console(width=150)
    console.print(f"{machine()}; {workers} co-located workers, engines emulated, load {load:g}")
    records = []
    for seed in seeds:
        for fair in (False, True):
            for record in _measured(load, workers, seconds, arrivals, weights, seed, fair=fair):
                records.append(record)
                arm = "with" if fair else "without"
                console.print(
                    f"seed {seed}, {arm} fair shares: {record.tenant} {record.promised} of {record.offered} promised, "
                    f"{record.kept} kept; in all {record.total_promised} of {record.total_offered}"
                )
    write_records(json, [asdict(record) | {"emulated": True} for record in records])


def _measured(
    load: float,
    workers: int,
    seconds: float,
    arrivals: Mapping[str, float],
    weights: Mapping[str, float],
    seed: int,
    *,
    fair: bool,
) -> list[TenantRecord]:
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "cluster.toml"
        common = EMULATED.format(run_dir=Path(directory) / "run", prefill=0, decode=workers, local_prefill="true")
        tenants = "".join(f"[tenants.{name}]\nweight = {weight}\n" for name, weight in weights.items())
        config.write_text(common.replace("[router]\n", f"[router]\nfair_shares = {str(fair).lower()}\n") + tenants)
        settings = load_settings(config)
        capacity_rps = workers / mean_prefill_s(settings)
        launcher = LocalCluster(settings, config, die_with_parent=True, report=log.info)
        running = launcher.start()
        try:
            warm_up = _schedule(WARM_UP_LOAD * capacity_rps, WARM_UP_S, arrivals, seed + 1000)
            asyncio.run(offer(running.router_address, warm_up, seed + 1000, _nothing))
            measured = _schedule(load * capacity_rps, seconds, arrivals, seed)
            exchanges = asyncio.run(offer(running.router_address, measured, seed, _nothing))
        finally:
            launcher.stop()
    return [_record(load, seed, tenant, exchanges, fair=fair) for tenant in arrivals]


def _nothing() -> None:
    """Take no note of progress."""


def _schedule(rate_rps: float, seconds: float, arrivals: Mapping[str, float], seed: int) -> Schedule:
    """Return requests of several applications, each sent by a tenant that is drawn at random."""
    schedule = of_applications(rate_rps, 1.0, Bounds(seconds), seed)
    shares = np.array(list(arrivals.values()))
    drawn = np.random.default_rng(seed).choice(list(arrivals), size=len(schedule.planned), p=shares / shares.sum())
    sent = (replace(planned, tenant=str(name)) for planned, name in zip(schedule.planned, drawn, strict=True))
    return replace(schedule, planned=tuple(sent))


def _record(load: float, seed: int, tenant: str, exchanges: Sequence[Exchange], *, fair: bool) -> TenantRecord:
    promised = [e for e in exchanges if e.answer is not None and e.answer.verdict is Verdict.GUARANTEED]
    theirs = [exchange for exchange in promised if exchange.planned.tenant == tenant]
    return TenantRecord(
        load,
        seed,
        fair,
        tenant,
        sum(exchange.planned.tenant == tenant for exchange in exchanges),
        len(theirs),
        sum(exchange.claims is not None and exchange.claims.kept for exchange in theirs),
        len(exchanges),
        len(promised),
    )
