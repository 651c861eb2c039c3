"""`bench`: figures that anyone can measure again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(help="Measure; every figure says what it ran on.", no_args_is_help=True)

JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the records here as well.")]


@bench.command()
def handover(
    json: JsonOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Requests a figure is the median of.")] = 9,
) -> None:
    """Time from the first to the second token with its parts, on real vLLM."""
    from benchmarks.handover import run

    run(json, repeats)


@bench.command()
def steps(
    json: JsonOption = None,
    seconds: Annotated[float, typer.Option(min=10, help="How long to drive the engine.")] = 100.0,
    core: Annotated[int | None, typer.Option(help="CPU core of the engine. Default: the last one.")] = None,
) -> None:
    """How well the performance model predicts the steps of a real vLLM engine on one core."""
    from benchmarks.step_times import run

    run(json, seconds, core)


@bench.command()
def idle(
    json: JsonOption = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to look.")] = 20.0,
) -> None:
    """CPU and memory of each process of an idle cluster, on real vLLM."""
    from benchmarks.idle import run

    run(json, seconds)


@bench.command()
def planner(
    json: JsonOption = None,
    quick: Annotated[
        bool, typer.Option(help="Fewer instances; the optimum only where every subset can be tried.")
    ] = False,
) -> None:
    """Time and quality of a planning round; no engine is run."""
    from benchmarks.planner import run

    run(json, quick)


@bench.command()
def engine(
    json: JsonOption = None,
    quick: Annotated[bool, typer.Option(help="Shorter, with fewer rates.")] = False,
    part: Annotated[list[str] | None, typer.Option(help="streams, sweep, cost or drafts; again for more.")] = None,
    core: Annotated[int | None, typer.Option(help="CPU core of the engine. Default: the last one.")] = None,
) -> None:
    """Whether promises are kept inside the engine: step composition and drafting against stock vLLM on one core."""
    from benchmarks.engine import PARTS, run

    unknown = sorted(set(part or ()) - set(PARTS))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(PARTS)}", param_hint="--part")
    run(json, quick, part or PARTS, core)


@bench.command()
def promises(
    json: JsonOption = None,
    seconds: Annotated[float, typer.Option(min=5, help="How long each load is offered.")] = 30.0,
    workers: Annotated[int, typer.Option(min=1, help="Workers in each pool.")] = 4,
    load: Annotated[list[float] | None, typer.Option(help="Multiple of the capacity; again for more.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the loads into this file (PNG or SVG).")] = None,
    real: Annotated[bool, typer.Option("--real", help="vLLM instead of emulated engines; use --workers 1.")] = False,
) -> None:
    """Guarantees kept, coverage of bounds and overload, on a cluster of real processes."""
    from benchmarks.promises import LOADS, run

    run(json, seconds, workers, load or LOADS, plot, real=real)


@bench.command()
def composer(json: JsonOption = None) -> None:
    """What it costs to compose a step; no engine is run."""
    from benchmarks.composer import run

    run(json)
