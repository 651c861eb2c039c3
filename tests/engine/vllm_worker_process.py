"""A worker of its own for tests that kill it: says "ready", then answers a prompt (JSON line) with a KV handle."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from services.engine.protocol import EngineRequest, EngineStep, SamplingOptions
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend.engine import VllmEngine


async def main(model_dir: Path) -> None:
    # Libraries print to standard output; the test reads from a copy of it.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    config = VllmEngineConfig(
        dtype="float32",
        max_model_len=2048,
        kv_cache_bytes=200 * 2**20,
        cpu_cores=(0,),
        log_level="ERROR",
        warm_up=False,
    )
    engine = VllmEngine(model_dir, config, "doomed")
    await engine.start()
    print(json.dumps("ready"), file=told, flush=True)
    prompt = json.loads(await asyncio.to_thread(sys.stdin.readline))
    sampling = SamplingOptions(max_tokens=8, temperature=0.0)
    await engine.submit(EngineRequest("first", tuple(prompt), 0, sampling, export_kv=True))
    async for event in engine.events():
        if isinstance(event, EngineStep):
            for output in event.outputs:
                if output.kv is not None:
                    print(json.dumps(asdict(output.kv)), file=told, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
