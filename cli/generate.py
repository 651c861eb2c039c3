"""The command `generate`, which streams the answer to one prompt to the terminal."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated

import typer

from cli.clusters import ConfigOption, fail
from cli.credential_options import ApiKeyFileOption, InsecureCredentialsOption
from cli.status_details import explain
from cli.target import AddressOption, find_target
from cli.texts import NotTextError, checked_text, standard_input
from services.config.load import ConfigurationError
from services.terminal.console import make_console
from slos_serve import (
    Admission,
    CallOptions,
    Contract,
    Event,
    Finished,
    FinishReason,
    Message,
    OnOverload,
    RetryPolicy,
    Sampling,
    SlosServeError,
    Tokens,
    Verdict,
)

notes = make_console(stderr=True)

CUT_SHORT = {FinishReason.ABORT: "cancelled", FinishReason.ERROR: "given up by the engine"}
"""Words for the reasons why a text ended early, with which the command fails."""


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; `-` reads it from standard input.")],
    address: AddressOption = None,
    config: ConfigOption = None,
    raw: Annotated[bool, typer.Option(help="Use the prompt as it is, without the model's chat template.")] = False,
    profile: Annotated[str, typer.Option(help="Contract by name: summarizer, coder, chatbot, ...")] = "",
    ttft_ms: Annotated[float | None, typer.Option(help="Contract: time to first token.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Contract: time per output token.")] = None,
    refuse: Annotated[bool, typer.Option(help="Refuse rather than serve without a guarantee.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens to generate at most.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling reproducible.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the text before this string; may be repeated.")] = None,
    request_id: Annotated[str, typer.Option(help="Chosen by you, unique; made up if empty.")] = "",
    api_key_file: ApiKeyFileOption = None,
    insecure_credentials: InsecureCredentialsOption = False,
) -> None:
    """Generate text. It goes to standard output, verdict and achieved times go to standard error.

    Exits with 1 if the request failed or somebody cancelled it.
    """
    try:
        prompt = standard_input() if prompt == "-" else checked_text(prompt, "the prompt")
        for name, text in (
            ("--profile", profile),
            ("--request-id", request_id),
            *(("--stop", text) for text in stop or ()),
        ):
            checked_text(text, name)
    except NotTextError as error:
        notes.print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    options: CallOptions = {
        "request_id": request_id,
        "sampling": Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed, stop=tuple(stop or ())),
        "contract": _contract(profile, ttft_ms, tpot_ms, refuse),
    }
    try:
        target = find_target(address, config, api_key_file, insecure_credentials=insecure_credentials)
    except ConfigurationError as error:
        fail(error)
    verdict, reason = Verdict.BEST_EFFORT, FinishReason.STOP
    with target.client(RetryPolicy(max_attempts=1)) as client:
        try:
            for event in client.generate(prompt if raw else [Message("user", prompt)], **options):
                match event:
                    case Admission():
                        request_id, verdict = event.request_id, event.verdict
                    case Finished():
                        reason = event.reason
                _show(event, request_id, promised=verdict is Verdict.GUARANTEED)
        except SlosServeError as error:
            fail(f"{target.address}: {explain(error)}")
        except KeyboardInterrupt:
            notes.print("\ncancelled", style="yellow")
            raise typer.Exit(130) from None
    if reason in CUT_SHORT:
        raise typer.Exit(1)


def _contract(profile: str, ttft_ms: float | None, tpot_ms: float | None, refuse: bool) -> Contract:
    return replace(
        Contract.latency(
            ttft_s=None if ttft_ms is None else ttft_ms / 1e3,
            tpot_s=None if tpot_ms is None else tpot_ms / 1e3,
            on_overload=OnOverload.REFUSE if refuse else None,
        ),
        profile=profile,
    )


def _show(event: Event, request_id: str, *, promised: bool) -> None:
    """Print an event of the stream of a request, to which a latency was promised or not."""
    match event:
        case Admission():
            why = f" ({event.reason})" if event.reason else ""
            made_up = "; an emulated engine makes these tokens up" if event.emulated else ""
            notes.print(
                f"{event.verdict.name.lower().replace('_', ' ')}{why}: TTFT {event.predicted.ttft_s * 1e3:.0f} ms, "
                f"TPOT {event.predicted.tpot_s * 1e3:.0f} ms predicted{made_up}",
                style="dim",
                markup=False,
            )
        case Tokens():
            sys.stdout.write(event.text)
            sys.stdout.flush()
        case Finished():
            sys.stdout.write("\n")
            sys.stdout.flush()
            achieved = event.achieved
            tpot = f", TPOT {achieved.stages[0].mean_tpot_s * 1e3:.0f} ms" if achieved.stages else ""
            notes.print(
                f"{request_id}: {_ended(event.reason)}{event.completion_tokens} tokens, "
                f"TTFT {achieved.ttft_s * 1e3:.0f} ms{tpot}, worst gap "
                f"{achieved.worst_gap_s * 1e3:.0f} ms{_outcome(event, promised=promised)}",
                style="dim",
                markup=False,
            )


def _ended(reason: FinishReason) -> str:
    return f"{CUT_SHORT[reason]} after " if reason in CUT_SHORT else ""


def _outcome(event: Finished, *, promised: bool) -> str:
    """Return what became of the contract, to be put behind the achieved times; empty if there is nothing to say."""
    if event.achieved.missed:
        return f"; missed: {event.achieved.missed}" if promised else f"; missed, not promised: {event.achieved.missed}"
    return "; kept" if promised and event.reason not in CUT_SHORT else ""
