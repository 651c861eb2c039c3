"""The simulator against the real thing: one workload on a real CPU cluster and in a simulation fitted to that cluster.

Real vLLM, one prefill and one decode worker. Lone requests and a load of their own come first: step times, the link
and the delays between processes are learnt from those alone. Then comes the workload that is compared, and the
simulator is given the very requests that were sent, at the times at which they were.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.asks import Ask
from benchmarks.load.driving import drive
from benchmarks.load.exchange import End, Exchange, Verdict
from benchmarks.load.grpc_wire import GrpcWire
from benchmarks.load.schedule import Bounds, Planned, Schedule, of_applications
from benchmarks.machine import machine, write_records
from benchmarks.prompts import DEFAULT_RANGE
from benchmarks.validity_fit import DECODE, PREFILL, Fitted, Step, fitted, steps_of
from benchmarks.validity_report import Outcome, comparisons, markdown, plot, step_ratio, table
from deploy.local.cluster import LocalCluster
from deploy.local.processes import RunningProcess
from services.config.load import load_settings
from services.slo.composer import Limits, Policy
from services.slo.contract import Contract
from services.slo.hardware import KV_BYTES_PER_TOKEN
from simulator.belief import Knowledge
from simulator.cluster import Cluster, Site
from simulator.engine import Engine
from simulator.policies.base import Source
from simulator.policies.choices import Choices, Roles
from simulator.policies.ours import Promising
from simulator.request import Live, Offered
from slos_serve import Client

log = logging.getLogger(__name__)

LONE_PROMPTS = (64, 1400, 200, 900, 400, 128, 600, 1100, 300, 64, 800, 1600)
LONE_EVERY_S, LONE_OUTPUT = 2.2, 16
LEARN_SEED = 77
PARTS = ("lone requests", "load to learn from", "compared")
PATIENCE_S = 60.0
SIMULATIONS = 5
"""With noise of their own; their requests are taken together."""

CONFIG = """
[launcher]
run_dir = "{run_dir}"
[router]
port = 0
[engine.vllm]
log_level = "ERROR"
[profiles.chatbot]
prefill = {{ max_slowdown = 5 }}
decode = [{{ tpot_s = 0.5 }}]
[profiles.coder]
prefill = {{ max_slowdown = 5 }}
decode = [{{ tpot_s = 0.3 }}]
[profiles.summarizer]
prefill = {{ max_slowdown = 3 }}
decode = [{{ tpot_s = 0.5 }}]
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the real cluster did."""

    lone: tuple[Exchange, ...]
    loaded: tuple[Exchange, ...]
    compared: tuple[Exchange, ...]
    began_s: float
    """When the compared workload began."""
    steps: Mapping[str, Sequence[Step]]
    kv_tokens: int
    limits: Limits
    others_cores: float = 0.0
    """Used by processes that are no part of this, while the compared workload ran."""


class Recording(LocalCluster):
    """A cluster whose engines write down their steps."""

    def start_worker(self, role: str, index: int, extra: Mapping[str, str] | None = None) -> RunningProcess:
        recording = {"SLOS_SERVE_ENGINE__VLLM__RECORD_STEPS": str(self.recording(f"{role}-{index}"))}
        return super().start_worker(role, index, {**(extra or {}), **recording})

    def recording(self, worker_id: str) -> Path:
        return self.settings.launcher.run_dir.resolve() / f"{worker_id}.jsonl"


def run(
    rate_rps: float,
    requests: int,
    learn_s: float,
    seed: int,
    json: Path | None,
    text: Path | None,
    picture: Path | None,
) -> None:
    """
    Raises:
        TooLittleError, ScheduleError
    """
    console = Console(width=150)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress, tempfile.TemporaryDirectory() as directory:
        task = progress.add_task("starting the cluster", total=None)

        def say(what: str) -> None:
            progress.update(task, description=what)

        real = measure(Path(directory), rate_rps, requests, learn_s, seed, say)
        say("simulating")
        learnt = {own: _learnt(real, own=own) for own in (True, False)}
        simulated = {
            own: [outcome for number in range(SIMULATIONS) for outcome in simulate(real, known, number)]
            for own, known in learnt.items()
        }
    outcomes = [_outcome(exchange) for exchange in real.compared if exchange.end is End.COMPLETE]
    found = comparisons(outcomes, simulated[True], simulated[False])
    note = (
        f"{len(outcomes)} requests at {rate_rps:g}/s, seed {seed}; real: 1 prefill and 1 decode worker of vLLM, "
        f"SmolLM2-135M, bfloat16, one core each of {machine()}, while others used {real.others_cores:.2f} cores; "
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
        own: from the steps of the compared workload as well; otherwise from those before it alone.
    """
    steps = {
        worker: [step for step in steps if own or step.ended_s < real.began_s] for worker, steps in real.steps.items()
    }
    return fitted(steps, real.lone, real.loaded)


def measure(
    directory: Path, rate_rps: float, requests: int, learn_s: float, seed: int, say: Callable[[str], None]
) -> Measured:
    config = directory / "cluster.toml"
    config.write_text(CONFIG.format(run_dir=directory / "run"))
    cluster = Recording(load_settings(config), config, die_with_parent=True, report=log.info)
    running = cluster.start()
    try:
        with Client(running.router_address) as client:
            state = client.cluster_state()
        vllm = cluster.settings.engine.vllm
        blocks = next(worker.kv_blocks_total for worker in state.workers if worker.worker_id == DECODE)
        schedules = [
            _lone(),
            _learning(rate_rps, learn_s),
            _without_refusals(of_applications(rate_rps, 1.0, Bounds(requests=requests), seed)),
        ]
        runs = asyncio.run(_drive(running.router_address, schedules, say))
    finally:
        cluster.stop()
    (lone, _, _), (loaded, _, _), (compared, began_s, others_cores) = runs
    return Measured(
        lone=lone,
        loaded=loaded,
        compared=compared,
        began_s=began_s,
        steps={worker: steps_of(cluster.recording(worker)) for worker in (PREFILL, DECODE)},
        kv_tokens=blocks * vllm.block_tokens,
        limits=Limits(vllm.max_step_tokens, vllm.max_running_requests, vllm.block_tokens),
        others_cores=others_cores,
    )


async def _drive(
    address: str, schedules: Sequence[Schedule], say: Callable[[str], None]
) -> list[tuple[tuple[Exchange, ...], float, float]]:
    runs = []
    for number, (what, schedule) in enumerate(zip(PARTS, schedules, strict=True)):
        say(f"{what}: {len(schedule.planned)} requests")
        wire = GrpcWire((address,), None, "", DEFAULT_RANGE, seed=number)
        before_s, ours_before_s, began_s = _busy_s(), _ours_s(), time.monotonic()
        try:
            done = await drive(wire, schedule, patience_s=PATIENCE_S, stop=asyncio.Event())
        finally:
            await wire.close()
        others_s = (_busy_s() - before_s) - (_ours_s() - ours_before_s)
        runs.append((done.exchanges, done.began_s, max(0.0, others_s / (time.monotonic() - began_s))))
    return runs


def _busy_s() -> float:
    """Of all cores since the machine started."""
    times = psutil.cpu_times()
    return times.user + times.system


def _ours_s() -> float:
    """Of this process and all that it started."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in family))


def _lone() -> Schedule:
    planned = [
        Planned(number, number * LONE_EVERY_S, Ask(), tokens, LONE_OUTPUT) for number, tokens in enumerate(LONE_PROMPTS)
    ]
    return Schedule(tuple(planned), len(planned) * LONE_EVERY_S)


def _learning(rate_rps: float, seconds: float) -> Schedule:
    return _without_refusals(of_applications(rate_rps, 1.0, Bounds(seconds=seconds), LEARN_SEED))


def _without_refusals(schedule: Schedule) -> Schedule:
    """Everybody is served: two runs can only be compared if the same requests are in them."""
    planned = tuple(
        Planned(p.number, p.at_s, Ask(p.ask.profile), p.prompt_tokens, p.output_tokens) for p in schedule.planned
    )
    return Schedule(planned, schedule.seconds)


class _Watched(Promising):
    """Notes how long hand-overs take, from the first token until the engine can work on the request."""

    def __init__(self, site: Site, choices: Choices, tpots_s: Sequence[float]) -> None:
        super().__init__(site, choices, tpots_s)
        self.handovers_s: dict[str, float] = {}

    def handed_over(self, source: Source, engine: Engine, live: Live, transfer_s: float) -> None:
        now_s, wait_s = self.events.now_s, self.events.now_s - source.since_s
        if engine.step is not None:
            wait_s += max(0.0, engine.step_began_s + self.machine.truth.step_s(engine.step.shape) - now_s)
        self.handovers_s[live.request_id] = wait_s
        super().handed_over(source, engine, live, transfer_s)


def simulate(real: Measured, learnt: Fitted, seed: int) -> list[Outcome]:
    """The same requests in the simulator, as their clients would have seen them."""
    hardware = learnt.machine(real.kv_tokens, KV_BYTES_PER_TOKEN["SmolLM2-135M"], real.limits)
    sent = [exchange for exchange in real.compared if exchange.answer is not None]
    offered = [
        Offered(
            exchange.sent_s - real.began_s,
            exchange.planned.ask.profile,
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
        prefill_cap_s=float("inf"),
        policy=Policy(),
    )
    policies: list[_Watched] = []

    def make(site: Site) -> _Watched:
        policies.append(_Watched(site, choices, tpots_s))
        return policies[-1]

    ran = Cluster(hardware, 2, make, offered, seed=seed, keep=True).run()
    return [
        Outcome(
            profile=live.offered.application,
            ttft_s=live.first_s - live.arrival_s + learnt.delivery_s,
            tpot_s=live.mean_tpot_s,
            e2e_s=live.ended_s - live.arrival_s + learnt.delivery_s,
            handover_s=policies[0].handovers_s.get(live.request_id, 0.0),
            guaranteed=live.guaranteed,
            kept=live.attained,
        )
        for live in ran.lives
    ]


def _contract(exchange: Exchange) -> Contract:
    """In seconds, as the router resolved it: what an idle prefill takes is its own belief, not the simulator's."""
    assert exchange.answer is not None
    return exchange.answer.contract


def _outcome(exchange: Exchange) -> Outcome:
    first_s, last_s = exchange.arrivals[0][0], exchange.arrivals[-1][0]
    claims, answer = exchange.claims, exchange.answer
    return Outcome(
        profile=exchange.planned.ask.profile,
        ttft_s=first_s - exchange.sent_s,
        tpot_s=(last_s - first_s) / max(1, exchange.token_count - 1),
        e2e_s=last_s - exchange.sent_s,
        handover_s=claims.phases_s.get("handover", 0.0) if claims is not None else 0.0,
        guaranteed=answer is not None and answer.verdict is Verdict.GUARANTEED,
        kept=exchange.kept,
    )
