"""`generate`: one prompt, streamed to the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import grpc
import typer

from cli.clusters import ConfigOption, fail
from cli.console import make_console
from cli.status_details import explain
from cli.target import AddressOption, router_address
from services.config.load import ConfigurationError
from slos_serve.v1 import contract_pb2, inference_pb2, inference_pb2_grpc, sampling_pb2

notes = make_console(stderr=True)


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
) -> None:
    """Generate text: the text on standard output, verdict and achieved times on standard error."""
    if prompt == "-":
        prompt = sys.stdin.read()
    request = inference_pb2.GenerateRequest(
        request_id=request_id,
        sampling=sampling_pb2.SamplingParams(
            max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop or []
        ),
        contract=_contract(profile, ttft_ms, tpot_ms, refuse),
    )
    if raw:
        request.text = prompt
    else:
        request.chat.messages.add(role="user", content=prompt)
    try:
        target = router_address(address, config)
    except ConfigurationError as error:
        fail(error)
    with grpc.insecure_channel(target) as channel:
        try:
            for answer in inference_pb2_grpc.InferenceStub(channel).Generate(request):
                _show(answer)
        except grpc.RpcError as error:
            fail(f"{target}: {explain(error)}")
        except KeyboardInterrupt:
            notes.print("\ncancelled", style="yellow")
            raise typer.Exit(130) from None


def _contract(profile: str, ttft_ms: float | None, tpot_ms: float | None, refuse: bool) -> contract_pb2.Contract:
    contract = contract_pb2.Contract(profile=profile)
    if refuse:
        contract.on_overload = contract_pb2.ON_OVERLOAD_REFUSE
    if ttft_ms is not None:
        contract.stages.add().prefill.ttft_s = ttft_ms / 1e3
    if tpot_ms is not None:
        contract.stages.add().decode.tpot_s = tpot_ms / 1e3
    return contract


def verdict_name(verdict: inference_pb2.Verdict.ValueType) -> str:
    return inference_pb2.Verdict.Name(verdict).removeprefix("VERDICT_").lower().replace("_", " ")


def _show(answer: inference_pb2.GenerateResponse) -> None:
    match answer.WhichOneof("event"):
        case "admission":
            admission = answer.admission
            why = f" ({admission.reason})" if admission.reason else ""
            made_up = "; an emulated engine makes these tokens up" if admission.emulated else ""
            notes.print(
                f"{verdict_name(admission.verdict)}{why}: TTFT {admission.predicted.ttft_s * 1e3:.0f} ms, "
                f"TPOT {admission.predicted.tpot_s * 1e3:.0f} ms predicted{made_up}",
                style="dim",
            )
        case "tokens":
            sys.stdout.write(answer.tokens.text)
            sys.stdout.flush()
        case "finished":
            sys.stdout.write("\n")
            sys.stdout.flush()
            finished = answer.finished
            achieved = finished.achieved
            tpot = f", TPOT {achieved.stages[0].mean_tpot_s * 1e3:.0f} ms" if achieved.stages else ""
            notes.print(
                f"{finished.completion_tokens} tokens: TTFT {achieved.ttft_s * 1e3:.0f} ms{tpot}, worst gap "
                f"{achieved.worst_gap_s * 1e3:.0f} ms; {'kept' if achieved.kept else 'missed: ' + achieved.missed}",
                style="dim",
            )
