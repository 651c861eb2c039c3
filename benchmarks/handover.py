"""How long the hand-over of a KV cache takes: from the first token to the second, with its parts.

Real vLLM, one prefill and one decode worker; the decode worker idle, and busy with eight other streams.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from rich.table import Table

from benchmarks.machine import machine, real_engine, write_records
from benchmarks.prompts import unshared
from deploy.local.cluster import LocalCluster, running_cluster
from services.config.load import load_settings
from services.terminal.console import make_console
from slos_serve.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2

PROMPT_TOKENS = (128, 512, 2000)
OUTPUT_TOKENS = 16
BUSY_STREAMS = 8
BUSY_OUTPUT_TOKENS = 1200
"""Long enough to outlast the measurement, and all of them fit into the default KV cache of the decode worker."""

console = make_console()


def run(json_path: Path | None, repeats: int) -> None:
    records = measure(repeats)
    console.print(_table(records))
    console.print(f"medians of {repeats} requests; {machine()}; {real_engine()} on CPU")
    write_records(json_path, records)


def measure(repeats: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        settings = load_settings(None, {"router": {"port": 0}, "launcher": {"run_dir": directory}})
        cluster = LocalCluster(settings, None, die_with_parent=True, report=console.print)
        with running_cluster(cluster) as running, grpc.insecure_channel(running.router_address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            for prompt_tokens in PROMPT_TOKENS:
                _one(stub, prompt_tokens, salt=0)  # handshakes and first-time work are not the hand-over
            idle = [_record(stub, prompt_tokens, repeats, busy=False) for prompt_tokens in PROMPT_TOKENS]
            busy = []
            for prompt_tokens in PROMPT_TOKENS:
                with _background(stub):
                    busy.append(_record(stub, prompt_tokens, repeats, busy=True))
    return [*idle, *busy]


def _record(stub: inference_pb2_grpc.InferenceStub, prompt_tokens: int, repeats: int, *, busy: bool) -> dict[str, Any]:
    rows = [_one(stub, prompt_tokens, salt=1 + repeat + 100 * busy) for repeat in range(repeats)]
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {"prompt_tokens": prompt_tokens, "decode_worker": "busy" if busy else "idle", **medians}


def _one(stub: inference_pb2_grpc.InferenceStub, prompt_tokens: int, salt: int) -> dict[str, float]:
    """One request; another prompt every time, so that no prefix is cached."""
    times_s: list[float] = []
    finished: inference_pb2.Finished | None = None
    for response in stub.Generate(_request(prompt_tokens, OUTPUT_TOKENS, salt)):
        if response.HasField("tokens"):
            times_s += [time.monotonic()] * len(response.tokens.token_ids)
        elif response.HasField("finished"):
            finished = response.finished
    assert finished is not None
    gaps_s = [after - before for before, after in itertools.pairwise(times_s)]
    pull = finished.kv_pull
    return {
        "first_to_second_s": gaps_s[0],
        "decode_step_s": statistics.median(gaps_s[1:]),
        "worker_wait_s": pull.wait_s - pull.transfer_s,
        "transfer_s": pull.transfer_s,
        "first_step_s": gaps_s[0] - pull.wait_s,
        "kv_bytes": float(pull.bytes),
        "ttft_s": finished.achieved.ttft_s,
    }


@contextmanager
def _background(stub: inference_pb2_grpc.InferenceStub) -> Iterator[None]:
    """Streams that keep the decode worker busy for as long as the block lasts."""
    streams = [stub.Generate(_request(32, BUSY_OUTPUT_TOKENS, 1000 + index)) for index in range(BUSY_STREAMS)]
    decoding = threading.Barrier(BUSY_STREAMS + 1)

    def follow(stream: Iterator[inference_pb2.GenerateResponse]) -> None:
        chunks = 0
        try:
            for response in stream:
                chunks += response.HasField("tokens")
                if chunks == 2:
                    decoding.wait()
                    chunks += 1
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                raise

    threads = [threading.Thread(target=follow, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    decoding.wait()
    try:
        yield
    finally:
        for stream in streams:
            stream.cancel()
        for thread in threads:
            thread.join()


def _request(prompt_tokens: int, max_tokens: int, salt: int) -> inference_pb2.GenerateRequest:
    ids = unshared(prompt_tokens, prompt_tokens, salt)
    return inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=ids),
        sampling=sampling_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
    )


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table(title="Hand-over of a KV cache (milliseconds)")
    columns = {
        "prompt_tokens": "prompt",
        "decode_worker": "decode worker",
        "first_to_second_s": "1st to 2nd token",
        "worker_wait_s": "wait for a step",
        "transfer_s": "transfer",
        "first_step_s": "first step, router, wire",
        "decode_step_s": "a decode step",
        "kv_bytes": "KV MB",
    }
    for title in columns.values():
        table.add_column(title, justify="right")
    for record in records:
        table.add_row(*(_cell(name, record[name]) for name in columns))
    return table


def _cell(name: str, value: Any) -> str:
    if name == "kv_bytes":
        return f"{value / 1e6:.1f}"
    return f"{value * 1e3:.1f}" if name.endswith("_s") else str(value)
