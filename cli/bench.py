"""The commands of `slos-serve bench`, which measure figures that anyone can measure again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli import bench_serve

bench = typer.Typer(help="Measure; every figure says what it ran on.", no_args_is_help=True)

bench.command()(bench_serve.serve)
bench.command()(bench_serve.validity)

JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the records here as well.")]


@bench.command()
def handover(
    json: JsonOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Requests a figure is the median of.")] = 9,
) -> None:
    """Measure the time from the first to the second token with its parts, on real vLLM."""
    from benchmarks.handover import run

    run(json, repeats)


@bench.command()
def steps(
    json: JsonOption = None,
    seconds: Annotated[float, typer.Option(min=10, help="How long to drive the engine.")] = 100.0,
    core: Annotated[int | None, typer.Option(help="CPU core of the engine. Default: the last one.")] = None,
) -> None:
    """Measure how well the performance model predicts the steps of a real vLLM engine on one core."""
    from benchmarks.step_times import run

    run(json, seconds, core)


@bench.command()
def telemetry(json: JsonOption = None) -> None:
    """Measure what counting and tracing one request costs a router."""
    from benchmarks.telemetry import run

    run(json)


@bench.command()
def router(
    json: JsonOption = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long each figure is measured.")] = 8.0,
    processes: Annotated[list[int] | None, typer.Option(help="Router processes on one port; again for more.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="latency, saturation, scaling, floor; again for more.")] = None,
) -> None:
    """Measure requests and tokens per second of a router, and the latency it adds, with stub workers."""
    from benchmarks.router_cost.bench import run

    run(json, seconds, processes or [1], part or ["latency", "saturation", "floor"])


@bench.command()
def quotas(
    json: JsonOption = None,
    requests: Annotated[int, typer.Option(min=10, help="Requests of each tenant.")] = 300,
) -> None:
    """Measure what quotas cost a request, at Redis and until the first token of an emulated cluster."""
    from benchmarks.quotas import run

    run(json, requests)


@bench.command()
def idle(
    json: JsonOption = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to look.")] = 20.0,
) -> None:
    """Measure CPU and memory of each process of an idle cluster, on real vLLM."""
    from benchmarks.idle import run

    run(json, seconds)


@bench.command()
def start(
    json: JsonOption = None,
    part: Annotated[
        list[str] | None, typer.Option(help="help, router-warm, router-cold, emulated or real; again for more.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Starts a figure is the median of.")] = 3,
    against: Annotated[
        Path | None, typer.Option(help="Directory of another version of the code, which is started by turns.")
    ] = None,
) -> None:
    """Measure how long help, a router, and clusters of emulated and real engines take to start."""
    from benchmarks.start import PARTS, run

    unknown = sorted(set(part or ()) - set(PARTS))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(PARTS)}", param_hint="--part")
    run(json, part or list(PARTS), repeats, against)


@bench.command()
def planner(
    json: JsonOption = None,
    quick: Annotated[
        bool, typer.Option(help="Fewer instances; the optimum only where every subset can be tried.")
    ] = False,
) -> None:
    """Measure time and quality of planning rounds; no engine is run."""
    from benchmarks.planner import run

    run(json, quick)


@bench.command()
def engine(
    json: JsonOption = None,
    quick: Annotated[bool, typer.Option(help="Shorter, with fewer rates.")] = False,
    part: Annotated[
        list[str] | None,
        typer.Option(help="streams, changing, sweep, cost, relearning or drafts; again for more."),
    ] = None,
    core: Annotated[int | None, typer.Option(help="CPU core of the engine. Default: the last one.")] = None,
    load: Annotated[
        list[float] | None, typer.Option(min=0.01, help="Load of the sweep, 1 is all of an engine; again for more.")
    ] = None,
    chunk: Annotated[
        list[int] | None, typer.Option(min=1, help="Fixed chunk to compare with, in tokens; again for more.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests at each load of the sweep.")] = None,
) -> None:
    """Measure whether an engine keeps promises: step composition and drafting against stock vLLM on one core."""
    from benchmarks.engine import PARTS, run

    unknown = sorted(set(part or ()) - set(PARTS))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(PARTS)}", param_hint="--part")
    run(json, quick, part or PARTS, core, load or (), chunk or (), requests)


@bench.command()
def cluster(
    json: JsonOption = None,
    quick: Annotated[bool, typer.Option(help="Shorter, with fewer loads and variants.")] = False,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="stock, stock-N (chunks of N tokens), composed, apart, local-prefill or co-located; again for more."
        ),
    ] = None,
    load: Annotated[
        list[float] | None, typer.Option(min=0.01, help="1 is all the time of both engines; again for more.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests at each load.")] = None,
) -> None:
    """Compare a real cluster with two stock vLLM engines behind round robin, on the same two cores."""
    from benchmarks.cluster import CLUSTERS, QUICK_VARIANTS, VARIANTS, run

    known = {"stock", "composed", *CLUSTERS}
    wanted = tuple(variant or (QUICK_VARIANTS if quick else VARIANTS))
    for name in wanted:
        kind, _, chunk = name.partition("-")
        if name not in known and not (kind == "stock" and chunk.isdecimal() and int(chunk)):
            raise typer.BadParameter(
                f"{name}: there are {', '.join(sorted(known))} and stock-N", param_hint="--variant"
            )
    run(json, quick, wanted, load or (), requests)


@bench.command()
def promises(
    json: JsonOption = None,
    seconds: Annotated[float, typer.Option(min=5, help="How long each load is offered.")] = 30.0,
    workers: Annotated[int, typer.Option(min=1, help="Workers in each pool.")] = 4,
    load: Annotated[list[float] | None, typer.Option(help="Multiple of the capacity; again for more.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the loads into this file (PNG or SVG).")] = None,
    real: Annotated[bool, typer.Option("--real", help="vLLM instead of emulated engines; use --workers 1.")] = False,
    colocated: Annotated[
        bool, typer.Option("--co-located", help="Decode workers alone, twice as many; they compute their prompts.")
    ] = False,
) -> None:
    """Measure guarantees kept, coverage of bounds and overload, on a cluster of real processes."""
    from benchmarks.promises import LOADS, run

    run(json, seconds, workers, load or LOADS, plot, real=real, colocated=colocated)


@bench.command("auth")
def authentication(
    json: JsonOption = None,
    turns: Annotated[int, typer.Option(min=1, help="Times that each kind is measured, by turns.")] = 12,
) -> None:
    """Measure what API keys, tokens and mTLS cost, beside no authentication, with emulated engines."""
    from benchmarks.authentication import run

    run(json, turns)


@bench.command()
def neighbour(
    json: JsonOption = None,
    seconds: Annotated[float, typer.Option(min=5, help="How long the streams run alone, and then beside it.")] = 60.0,
    real: Annotated[bool, typer.Option("--real", help="vLLM instead of emulated engines.")] = False,
    ttft_s: Annotated[float, typer.Option(min=0.01, help="Time to first token that the streams ask for.")] = 5.0,
    tpot_s: Annotated[float, typer.Option(min=0.001, help="Time per output token that they ask for.")] = 0.5,
) -> None:
    """Measure promises kept while a hostile client tries everything, beside the same streams alone."""
    from benchmarks.neighbour.bench import run

    run(json, seconds, real=real, ttft_s=ttft_s, tpot_s=tpot_s)


@bench.command()
def hostile(json: JsonOption = None) -> None:
    """Try inputs that once harmed routers, gateways and workers, one by one; nothing is started."""
    from benchmarks.hostile import run

    run(json)


@bench.command()
def fairness(
    json: JsonOption = None,
    scenario: Annotated[str, typer.Option(help="One of `bench capacity`.")] = "mixed",
    layout: Annotated[str, typer.Option(help="One of this project's policies.")] = "ours-colocated",
    machine: Annotated[str, typer.Option(help="A performance profile.")] = "qwen2.5-7b-a100",
    gpus: Annotated[int, typer.Option(min=1)] = 2,
    rate: Annotated[list[float] | None, typer.Option(help="Requests/s of all tenants; again for more.")] = None,
    tenant: Annotated[
        list[str] | None, typer.Option(help="NAME=ARRIVALS or NAME=ARRIVALS:WEIGHT, relative numbers; again for more.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Again for more.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of arrivals that count.")] = 40.0,
    emulated: Annotated[
        bool, typer.Option("--emulated", help="A cluster of real processes with emulated engines instead.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="With --emulated: co-located workers.")] = 4,
    load: Annotated[float, typer.Option(min=0.1, help="With --emulated: multiple of the capacity.")] = 2.0,
) -> None:
    """Measure what tenants that share a cluster are promised, with and without fair shares; simulated by default."""
    from benchmarks import fairness_cluster
    from benchmarks.fairness import FairnessQuery, run, tenants_of

    try:
        arrivals, weights = tenants_of(tenant or ["small=1", "large=10"])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--tenant") from None
    if emulated:
        fairness_cluster.run(json, load, workers, seconds, arrivals, weights, seed or [1])
        return
    run(
        FairnessQuery(scenario, layout, machine, gpus, rate or [21.0], arrivals, weights, seed or [1, 2, 3], seconds),
        json,
    )


@bench.command()
def composer(json: JsonOption = None) -> None:
    """Measure what it costs to compose a step; no engine is run."""
    from benchmarks.composer import run

    run(json)


@bench.command()
def capacity(
    scenario: Annotated[list[str] | None, typer.Option(help="Again for more. Default: all six.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Again for more. Default: all, and the bound.")] = None,
    trace: Annotated[
        list[str] | None,
        typer.Option(help="SCENARIO=FILE, an Azure CSV or a Mooncake JSONL; FILE alone with a single scenario."),
    ] = None,
    machine: Annotated[str, typer.Option(help="A performance profile.")] = "qwen2.5-7b-a100",
    gpus: Annotated[int, typer.Option(min=1)] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="Of arrivals that count, at every rate tried.")] = 60.0,
    requests: Annotated[int, typer.Option(min=50, help="That count at least, however long they take.")] = 300,
    most_requests: Annotated[int, typer.Option(min=50, help="That count at most.")] = 6000,
    margin: Annotated[
        float, typer.Option(min=0, help="Share of these that come before and after them and do not count.")
    ] = 0.25,
    seed: int = 0,
    experiment: Annotated[
        list[str] | None, typer.Option(help="ablation, sensitivity or scaling of ours; again for more.")
    ] = None,
    rates: Annotated[bool, typer.Option(help="Sweep eight rates around each capacity as well.")] = True,
    json: JsonOption = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Directory for what is found, as it is found; what the same code put there is not redone."),
    ] = None,
    directory: Annotated[Path | None, typer.Option(help="Draw pictures into this directory.")] = None,
    again: Annotated[
        list[Path] | None,
        typer.Option(help="Simulate nothing: show what --json wrote, or all that --keep has; again for more."),
    ] = None,
) -> None:
    """Simulate the requests per second and GPU at which 90 % and 99 % of all contracts are kept."""
    from benchmarks.capacity import EXPERIMENTS, CapacityQuery, known_policies, known_scenarios, run
    from benchmarks.capacity import again as show_again
    from benchmarks.capacity_records import RecordsError
    from services.slo.hardware import UnknownHardwareError
    from simulator.machine import UnknownMachineError
    from simulator.traces import TraceError
    from simulator.traffic import Window

    if again:
        try:
            show_again(again, directory)
        except (OSError, RecordsError) as error:
            raise typer.BadParameter(str(error), param_hint="--again") from error
        return
    scenarios, policies = scenario or known_scenarios(), policy or known_policies()
    for given, known, hint in (
        (scenarios, known_scenarios(), "--scenario"),
        (policies, known_policies(), "--policy"),
        (experiment or (), EXPERIMENTS, "--experiment"),
    ):
        if unknown := sorted(set(given) - set(known)):
            raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(known)}", param_hint=hint)
    if most_requests < requests:
        raise typer.BadParameter(f"{most_requests} is less than --requests {requests}", param_hint="--most-requests")
    traces = _traces(trace or (), scenarios)
    window = Window(seconds, requests, most_requests, margin)
    query = CapacityQuery(scenarios, policies, traces, machine, gpus, window, seed, experiment or (), rates)
    try:
        run(query, json, keep, directory)
    except (UnknownHardwareError, UnknownMachineError) as error:
        raise typer.BadParameter(str(error), param_hint="--machine") from error
    except TraceError as error:
        raise typer.BadParameter(str(error), param_hint="--trace") from error
    except (OSError, RecordsError) as error:
        raise typer.BadParameter(str(error), param_hint="--keep") from error


def _traces(given: Sequence[str], scenarios: Sequence[str]) -> dict[str, Path]:
    traces = {}
    for text in given:
        name, separator, file = text.partition("=")
        if not separator:
            if len(scenarios) != 1:
                raise typer.BadParameter(f"{text}: say SCENARIO=FILE", param_hint="--trace")
            name, file = scenarios[0], text
        if name not in scenarios or name == "mixed":
            raise typer.BadParameter(f"{name}: takes no trace here", param_hint="--trace")
        traces[name] = Path(file)
    return traces
