"""One stock vLLM engine without anything of ours: what the cluster's text is compared with.

Run as `python -m tests.support.stock_vllm MODEL_DIR` with a JSON list of `{"prompts": [[...], ...], "sampling": {...}}`
on standard input; each entry is one batch. Answers with the token ids of every output.
"""

from __future__ import annotations

import json
import os
import sys

STOCK_ENVIRONMENT = {
    "VLLM_PLUGINS": "none",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


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
