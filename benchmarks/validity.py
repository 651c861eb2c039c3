"""The simulator against the real thing: one workload on a real CPU cluster and in a simulation fitted to that cluster.

Real vLLM, one prefill and one decode worker. Lone requests and a load of their own come first: step times, the link
and the delays between processes are learnt from those alone. Then comes the workload that is compared, and the
simulator is given the very requests that were sent, at the times at which they were.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.load.exchange import End, Exchange, Verdict
from benchmarks.machine import machine, real_engine, write_records
from benchmarks.validity_cluster import Measured, measure
from benchmarks.validity_fit import Fitted, fitted
from benchmarks.validity_report import ClientOutcome, comparisons, markdown, plot, step_ratio, table
from services.slo.composer import ComposerPolicy
from services.slo.contract import Contract
from simulator.cluster import Cluster, PolicyContext
from simulator.engine import Engine
from simulator.knowledge import Knowledge
from simulator.policies.base import Source
from simulator.policies.choices import Choices, Roles
from simulator.policies.promising import PromisingPolicy
from simulator.request import OfferedRequest, SimRequest

log = logging.getLogger(__name__)

SIMULATIONS = 5
"""With noise of their own; their requests are taken together."""


def run(
    rate_rps: float,
    requests: int,
    learn_s: float,
    seed: int,
    json: Path | None,
    text: Path | None,
    picture: Path | None,
    *,
    emulated: bool = False,
) -> None:
    """
    Args:
        emulated: engines that take a model's time: everything but the engines is real then.

    Raises:
        TooLittleError, ScheduleError
    """
    console = Console(width=150)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress, tempfile.TemporaryDirectory() as directory:
        task = progress.add_task("starting the cluster", total=None)

        def say(what: str) -> None:
            progress.update(task, description=what)

        real = measure(Path(directory), rate_rps, requests, learn_s, seed, say, emulated=emulated)
        say("simulating")
        learnt = {own: _learnt(real, own=own) for own in (True, False)}
        simulated = {
            own: [outcome for number in range(SIMULATIONS) for outcome in simulate(real, known, number)]
            for own, known in learnt.items()
        }
    outcomes = [_outcome(exchange) for exchange in real.compared if exchange.end is End.COMPLETE]
    found = comparisons(outcomes, simulated[True], simulated[False])
    engines = "EMULATED engines (times come from a model)" if emulated else f"{real_engine()}, one core each"
    note = (
        f"{len(outcomes)} requests at {rate_rps:g}/s, seed {seed}; real processes: 1 prefill and 1 decode worker of "
        f"{engines}; {machine()}, while others used {real.others_cores:.2f} cores; "
        f"simulated: {SIMULATIONS} runs"
    )
    console.print(table(found, note))
    compared_steps = [step for steps in real.steps.values() for step in steps if step.began_s >= real.began_s]
    drift = step_ratio(compared_steps, learnt[False].model)
    console.print(f"steps of the compared workload took {drift:.3f} of what those before it let expect")
    write_records(
        json,
        [
            {"note": note, "fitted": learnt[True].figures(), "fitted_before": learnt[False].figures(), "drift": drift},
            *({"comparison": asdict(one)} for one in found),
            *({"real": asdict(one)} for one in outcomes),
            *({"simulated": asdict(one)} for one in simulated[True]),
        ],
    )
    if text is not None:
        text.write_text(markdown(found, learnt[True], drift, note))
    if picture is not None:
        plot(outcomes, simulated[True], picture)


def _learnt(real: Measured, *, own: bool) -> Fitted:
    """
    Args:
        own: from the steps of the compared workload itself, the machine as it was then; otherwise from those before it.
    """
    since_s, until_s = (real.began_s, math.inf) if own else (-math.inf, real.began_s)
    return fitted(real.steps, real.lone, real.loaded, since_s, until_s)


class _Watched(PromisingPolicy):
    """Notes how long hand-overs take, from the first token until the engine can work on the request."""

    def __init__(self, context: PolicyContext, choices: Choices, tpots_s: Sequence[float]) -> None:
        super().__init__(context, choices, tpots_s)
        self.handovers_s: dict[str, float] = {}

    def handed_over(self, source: Source, engine: Engine, request: SimRequest, transfer_s: float) -> None:
        now_s, wait_s = self.events.now_s, self.events.now_s - source.since_s
        if engine.step is not None:
            wait_s += max(0.0, engine.step_began_s + self.machine.truth.step_s(engine.step.shape) - now_s)
        self.handovers_s[request.request_id] = wait_s
        super().handed_over(source, engine, request, transfer_s)


def simulate(real: Measured, learnt: Fitted, seed: int) -> list[ClientOutcome]:
    """Return what became of the requests in the simulator, as their clients would have seen them."""
    hardware = learnt.machine(real.kv_tokens, real.kv_bytes_per_token, real.limits)
    sent = [exchange for exchange in real.compared if exchange.answer is not None]
    offered = [
        OfferedRequest(
            exchange.sent_s - real.began_s,
            exchange.planned.slo.profile,
            exchange.planned.prompt_tokens,
            exchange.planned.output_tokens,
            _contract(exchange),
        )
        for exchange in sent
    ]
    tpots_s = sorted({target.tpot_s for request in offered for target in request.contract.decode})
    # As the router and vLLM's workers are set up when nothing is configured.
    choices = Choices(
        roles=Roles.DISAGGREGATED,
        prefills=1,
        knowledge=Knowledge(error=0.0),
        speculation=False,
        policy=ComposerPolicy(),
    )
    policies: list[_Watched] = []

    def make(context: PolicyContext) -> _Watched:
        policies.append(_Watched(context, choices, tpots_s))
        return policies[-1]

    ran = Cluster(hardware, 2, make, offered, seed=seed, keep=True).run()
    return [
        ClientOutcome(
            profile=request.offered.application,
            ttft_s=request.first_s - request.arrival_s + learnt.delivery_s,
            tpot_s=request.mean_tpot_s,
            e2e_s=request.ended_s - request.arrival_s + learnt.delivery_s,
            handover_s=policies[0].handovers_s.get(request.request_id, 0.0),
            guaranteed=request.guaranteed,
            kept=request.attained,
        )
        for request in ran.requests
    ]


def _contract(exchange: Exchange) -> Contract:
    """In seconds, as the router resolved it: what an idle prefill takes is its own belief, not the simulator's."""
    assert exchange.answer is not None
    return exchange.answer.contract


def _outcome(exchange: Exchange) -> ClientOutcome:
    first_s, last_s = exchange.arrivals[0][0], exchange.arrivals[-1][0]
    claims, answer = exchange.claims, exchange.answer
    return ClientOutcome(
        profile=exchange.planned.slo.profile,
        ttft_s=first_s - exchange.sent_s,
        tpot_s=(last_s - first_s) / max(1, exchange.token_count - 1),
        e2e_s=last_s - exchange.sent_s,
        handover_s=claims.phases_s.get("handover", 0.0) if claims is not None else 0.0,
        guaranteed=answer is not None and answer.verdict is Verdict.GUARANTEED,
        kept=exchange.kept,
    )
