"""One stock vLLM engine without anything of ours: what the cluster's text is compared with.

Run as `python -m tests.support.stock_vllm MODEL_DIR` with a JSON list of `{"prompts": [[...], ...], "sampling": {...}}`
on standard input; each entry is one batch. Answers with the token ids of every output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STOCK_ENVIRONMENT = {
    "VLLM_PLUGINS": "none",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def stock_answers(
    model_dir: Path, batches: Sequence[dict[str, Any]], timeout_s: float = 400.0
) -> list[list[list[int]]]:
    """Token ids of every output of every batch, from an engine in a process of its own."""
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.support.stock_vllm", str(model_dir)],
        input=json.dumps(batches),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert outcome.returncode == 0, outcome.stderr[-4000:]
    answers: list[list[list[int]]] = json.loads(outcome.stdout.splitlines()[-1])
    return answers


def main() -> None:
    os.environ.update(STOCK_ENVIRONMENT)
    import torch
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    # Without this a tiny first batch reaches tile instructions that the kernel has not allowed yet.
    torch.cpu._init_amx()
    llm = LLM(
        sys.argv[1],
        dtype="float32",
        max_model_len=4096,
        kv_cache_memory_bytes=512 * 2**20,
        enforce_eager=True,
        block_size=32,
        max_num_batched_tokens=2048,
        skip_tokenizer_init=True,
    )
    answers = []
    for batch in json.load(sys.stdin):
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in batch["prompts"]]
        outputs = llm.generate(prompts, SamplingParams(detokenize=False, **batch["sampling"]), use_tqdm=False)
        answers.append([list(output.outputs[0].token_ids) for output in outputs])
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
