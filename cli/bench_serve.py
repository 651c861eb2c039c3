"""The commands `bench serve`, load for any running server, and `bench validity`, simulator beside real cluster."""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import Annotated

import typer

from cli.credential_options import ApiKeyFileOption, InsecureCredentialsOption


def serve(
    target: Annotated[
        str,
        typer.Option(help="grpc://host:port (several, with commas) or http://host:port/v1; grpcs and https: over TLS."),
    ],
    trace: Annotated[Path | None, typer.Option(help="Replay an Azure CSV or a Mooncake JSONL.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Made-up requests: median length.")] = None,
    output_tokens: Annotated[int, typer.Option(min=1, help="Made-up requests: median length.")] = 32,
    length_sigma: Annotated[float, typer.Option(min=0, max=3, help="Of the logarithm of both lengths.")] = 0.0,
    burstiness: Annotated[
        float, typer.Option(min=0.01, help="Of made-up arrivals: CV of the gaps; 1 is Poisson, above 1 bursty.")
    ] = 1.0,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            help="Contract: a profile, or ttft=0.5,tpot=0.05 (seconds), slowdown=5, none; ',refuse' behind it, '@3' "
            "for its weight. Again for a mix. Rows of a trace with contracts keep theirs."
        ),
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Requests a second; again for a sweep. A trace is stretched to it.")
    ] = None,
    speed: Annotated[float, typer.Option(min=1e-6, help="Replay a trace so many times as fast.")] = 1.0,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Of each rate. Default: 30, or the whole trace.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Of each rate, at most.")] = None,
    warm_up: Annotated[
        float, typer.Option(min=0, help="Seconds at the beginning of each rate that do not count.")
    ] = 0.0,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds until what still runs at the end is given up.")
    ] = 60.0,
    longest_prompt: Annotated[
        int | None, typer.Option(min=1, help="Cut longer prompts; the report says how many.")
    ] = None,
    length_scale: Annotated[float, typer.Option(min=1e-4, help="Multiply all lengths by this.")] = 1.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of everything that is drawn. Default: another every time.")
    ] = None,
    model: Annotated[str, typer.Option(help="Default: whatever is served.")] = "",
    highest_token: Annotated[int, typer.Option(min=1, help="Prompts are made of token ids up to this one.")] = 30_000,
    ca_file: Annotated[Path | None, typer.Option(help="PEM of whom to trust over TLS.")] = None,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="Bearer token over HTTP.")] = "",
    api_key_file: ApiKeyFileOption = None,
    insecure_credentials: InsecureCredentialsOption = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Whose profiles contracts are named after; see `--slo`.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the records here as well.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here as well.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw attainment and goodput over load (PNG or SVG).")] = None,
) -> None:
    """Offer load to a running server, open loop, and score every request as its client saw it.

    Without a trace and lengths: chat, code and summaries, each with the profile of its name.
    """
    from benchmarks.load.program import Connection, Outputs, Workload, run
    from benchmarks.load.schedule import Bounds, LogNormalLengths, Made, ScheduleError
    from benchmarks.load.wire import TargetError, target_of
    from benchmarks.prompts import TokenRange
    from benchmarks.requested_slo import parse_slo_mix
    from services.config.load import ConfigurationError, load_settings
    from services.config.own_credential import own_credential
    from services.config.profiles import profile_book
    from services.slo.contract import ContractError
    from services.terminal.console import make_console
    from simulator.traces import TraceError, read_trace
    from slos_serve.connection import is_loopback

    if any(not 0 < value < math.inf for value in rate or ()):
        raise typer.BadParameter("requests a second are positive", param_hint="--rate")
    if slo and trace is None and prompt_tokens is None:
        raise typer.BadParameter(
            "say --trace or --prompt-tokens as well: chat, code and summaries have theirs", param_hint="--slo"
        )
    seed = secrets.randbelow(2**31) if seed is None else seed
    limit = seconds if seconds is not None else (30.0 if trace is None and requests is None else math.inf)
    try:
        profiles = profile_book(load_settings(config).profiles)
        made = None
        if prompt_tokens is not None:
            made = Made(
                LogNormalLengths(prompt_tokens, length_sigma), LogNormalLengths(output_tokens, length_sigma), burstiness
            )
        workload = Workload(
            traced=tuple(read_trace(trace)) if trace is not None else (),
            name=trace.name if trace is not None else "",
            made=made,
            mix=parse_slo_mix(slo or ()),
            burstiness=burstiness,
            bounds=Bounds(limit, requests, longest_prompt, length_scale),
            rates_rps=tuple(rate or ()),
            speed=speed,
        )
        where = target_of(target)
        # An API key for OpenAI's interface is not meant for routers.
        own = own_credential(api_key_file)
        if own and where.scheme == "http" and not (insecure_credentials or is_loopback(where.rest.partition("/")[0])):
            raise TargetError(
                f"a credential would go unencrypted to {where}, which is not on this machine: use https, or say "
                "--insecure-credentials if nobody can listen on the way"
            )
        key = own or ("" if where.scheme.startswith("grpc") else api_key)
        among = TokenRange(min(TokenRange().first, highest_token // 2), highest_token)
        run(
            Connection(where, model, key, insecure_credentials, ca_file, among),
            workload,
            profiles,
            warm_up_s=warm_up,
            patience_s=patience,
            seed=seed,
            outputs=Outputs(json, markdown, plot),
            console=make_console(),
        )
    except ContractError as error:
        raise typer.BadParameter(error.detail, param_hint="--slo") from error
    except TraceError as error:
        raise typer.BadParameter(str(error), param_hint="--trace") from error
    except TargetError as error:
        raise typer.BadParameter(str(error), param_hint="--target") from error
    except (ScheduleError, ConfigurationError, OSError) as error:
        typer.echo(f"bench serve: {error}", err=True)
        raise typer.Exit(2) from error


def validity(
    rate: Annotated[float, typer.Option(min=0.05, help="Requests a second.")] = 0.5,
    requests: Annotated[int, typer.Option(min=10, help="To compare.")] = 48,
    learn: Annotated[
        float, typer.Option(min=5, help="Seconds of load, at the same rate, that the model learns from.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the compared workload.")] = 1,
    json: Annotated[Path | None, typer.Option("--json", help="Write the records here as well.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table here as well.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the distributions into this file (PNG or SVG).")] = None,
    emulated: Annotated[
        bool, typer.Option("--emulated", help="Engines that take a model's time; all other processes are real.")
    ] = False,
) -> None:
    """Compare TTFT and TPOT of a real CPU cluster and of the simulator, fitted to it, with the same requests."""
    from benchmarks.validity import run
    from benchmarks.validity_fit import TooLittleError

    try:
        run(rate, requests, learn, seed, json, markdown, plot, emulated=emulated)
    except TooLittleError as error:
        typer.echo(f"bench validity: too little to learn from: {error}", err=True)
        raise typer.Exit(1) from error
