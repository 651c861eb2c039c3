"""The floor under a Python router: an empty grpc.aio server that answers as a router does, and does nothing else.

Every stream gets one message in advance that stands for the verdict, one for each step and a last one, all made before
they are needed. What it reaches, no router on grpc.aio can exceed.

    python -m benchmarks.router_cost.floor CLOCKWORK WORKERS STEP_S [uvloop]
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.router_cost.clockwork import STEPS, Clockwork, request_number, token_of
from services.rpc.options import server_options
from slos_serve.v1 import inference_pb2

MESSAGE_BYTES = 8 << 20


class Floor:
    """Streams in as many cohorts as there would be decode workers; each cohort steps together."""

    def __init__(self, workers: int, step_s: float, times: Clockwork) -> None:
        self._workers = workers
        self._step_s = step_s
        self._times = times
        self._cohorts: list[set[asyncio.Queue[int]]] = [set() for _ in range(workers)]
        self._turn = 0

    async def generate(self, data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        arrived_s = time.monotonic()
        request = inference_pb2.GenerateRequest.FromString(data)
        number = request_number(request.request_id)
        self._turn += 1
        worker = self._turn % self._workers
        verdict = inference_pb2.Admission(verdict=inference_pb2.VERDICT_GUARANTEED, decode_worker_id=f"decode-{worker}")
        yield inference_pb2.GenerateResponse(admission=verdict).SerializeToString()
        self._times.arrived[number] = arrived_s
        self._times.first_token[number] = time.monotonic()
        yield _chunk(0, token_of(0))
        tokens = request.sampling.max_tokens
        queue: asyncio.Queue[int] = asyncio.Queue()
        if tokens > 1:
            self._cohorts[worker].add(queue)
        try:
            for index in range(1, tokens):
                yield _chunk(index, await queue.get())
        finally:
            self._cohorts[worker].discard(queue)
        finished = inference_pb2.Finished(completion_tokens=tokens)
        yield inference_pb2.GenerateResponse(finished=finished).SerializeToString()

    async def steps(self, worker: int) -> None:
        """One token for each stream of the cohort every `step_s`."""
        await asyncio.sleep(self._step_s * worker / self._workers)
        step, due_s = 0, time.monotonic()
        while True:
            due_s = max(due_s + self._step_s, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            step += 1
            self._times.steps[worker, step % STEPS] = time.monotonic()
            for queue in self._cohorts[worker]:
                queue.put_nowait(token_of(step))


def _chunk(index: int, token_id: int) -> bytes:
    chunk = inference_pb2.TokenChunk(index=index, token_ids=(token_id,), text=" token")
    return inference_pb2.GenerateResponse(tokens=chunk).SerializeToString()


async def serve(times: Clockwork, workers: int, step_s: float) -> None:
    """Until killed; writes its port."""
    floor = Floor(workers, step_s, times)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(floor.generate)
    server = grpc.aio.server(options=server_options(MESSAGE_BYTES))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("slos_serve.v1.Inference", {"Generate": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.gather(*(floor.steps(worker) for worker in range(workers)), server.wait_for_termination())


def main() -> None:
    path, workers, step_s = sys.argv[1:4]
    serving = serve(Clockwork.open(Path(path)), int(workers), float(step_s))
    if "uvloop" in sys.argv[4:]:
        import uvloop

        uvloop.run(serving)
    else:
        asyncio.run(serving)


if __name__ == "__main__":
    main()
