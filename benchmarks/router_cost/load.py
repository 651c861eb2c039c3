"""The load generator, a process of its own: keeps so many streams open, or begins so many requests a second.

    python -m benchmarks.router_cost.load < SPEC.json

It writes `begin` and `end` when its measuring window opens and closes, then one line of JSON.
"""

from __future__ import annotations

import json
import random
import selectors
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.router_cost.clockwork import Clockwork, request_number, step_of
from benchmarks.router_cost.wire import Connection
from slos_serve.v1 import inference_pb2, worker_pb2

GENERATE = "/slos_serve.v1.Inference/Generate"
SESSION = "/slos_serve.v1.Worker/Session"
SETTLE_S = 5.0
"""How long after the window streams may take to end."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What to offer, and to whom."""

    addresses: tuple[str, ...]
    """Addresses of the router; for `direct` those of all workers, prefill workers first."""
    clockwork: str
    run: str
    """Begins every request id; new for each run."""
    seconds: float
    warm_up_s: float
    streams: int = 0
    """Kept open, one request after the other; 0: by rate."""
    rate_rps: float = 0.0
    """Requests begun a second, at Poisson times."""
    output_tokens: int = 64
    prompt: str = ""
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    """Contract of every request; 0: none."""
    connections: int = 8
    prefill_workers: int = 0
    """Number of addresses that are prefill workers'; 0: they are a router's."""


@dataclass(slots=True)
class Seen:
    """What came back within the window."""

    finished: int = 0
    failed: int = 0
    guaranteed: int = 0
    kept: int = 0
    tokens: int = 0
    messages: int = 0
    wrong: int = 0
    """Chunks that did not continue where the one before ended."""
    late_starts: int = 0
    """Requests begun more than 5 ms after their time: the generator itself was behind."""
    started: int = 0
    token_s: list[float] = field(default_factory=list)
    """From a worker's report to the client."""
    first_s: list[float] = field(default_factory=list)
    """What was added to the time to the first token: from the client to the prefill worker and back from it."""


class Target(Protocol):
    """Where requests go."""

    connections: list[Connection]

    def begin(self, request_id: str, started_s: float) -> None: ...


class Load:
    """Keeps the offered load up and counts what comes back."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.times = Clockwork.open(Path(spec.clockwork))
        self.seen = Seen()
        self.open_streams = 0
        self.measuring = False
        self.began_s = time.monotonic()
        self._number = 0
        self._starting = True

    def run(self) -> Seen:
        spec = self.spec
        target: Target = Direct(self) if spec.prefill_workers else ThroughRouter(self)
        selector = selectors.DefaultSelector()
        for connection in target.connections:
            selector.register(connection, selectors.EVENT_READ, connection)
        until_s = self.began_s + spec.warm_up_s
        due_s = self.began_s
        phases = iter(("begin", "end", ""))
        while True:
            now_s = time.monotonic()
            if now_s >= until_s:
                phase = next(phases)
                if not phase:
                    break
                print(phase, flush=True)
                self.measuring = phase == "begin"
                until_s += spec.seconds if self.measuring else SETTLE_S
                self._starting = self.measuring
            if self._starting:
                due_s = self._start(target, now_s, due_s)
            elif not self.open_streams:
                break
            wait_s = min(until_s, due_s) - time.monotonic() if self._starting else 0.05
            for key, _ in selector.select(max(0.0, wait_s)):
                key.data.receive()
            for connection in target.connections:
                if connection.wants_to_write:
                    connection.flush()
        return self.seen

    def _start(self, target: Target, now_s: float, due_s: float) -> float:
        """Begin what is due; when the next is."""
        spec = self.spec
        if spec.streams:
            # Spread over the warm-up, so that streams are not in step with each other.
            share = min(1.0, (now_s - self.began_s) / (0.7 * spec.warm_up_s))
            while self.open_streams < max(1, round(share * spec.streams)):
                self._begin(target, now_s)
            return now_s + 0.005
        while due_s <= now_s:
            if self.measuring and now_s - due_s > 0.005:
                self.seen.late_starts += 1
            self._begin(target, due_s)
            due_s += random.expovariate(spec.rate_rps)
        return due_s

    def _begin(self, target: Target, started_s: float) -> None:
        self._number += 1
        self.open_streams += 1
        self.seen.started += self.measuring
        target.begin(f"{self.spec.run}-{self._number}", started_s)

    def tokens(self, worker: int, token_ids: Any, now_s: float) -> None:
        if self.measuring:
            seen, sent_s = self.seen, self.times.steps[worker]
            seen.messages += 1
            seen.tokens += len(token_ids)
            for token_id in token_ids:
                seen.token_s.append(now_s - sent_s[step_of(token_id)])

    def first_token(self, request_id: str, started_s: float, now_s: float) -> None:
        if self.measuring:
            number = request_number(request_id)
            times = self.times
            self.seen.messages += 1
            self.seen.tokens += 1
            self.seen.first_s.append(times.arrived[number] - started_s + now_s - times.first_token[number])

    def ended(self, *, complete: bool) -> None:
        self.open_streams -= 1
        if self.measuring:
            if complete:
                self.seen.finished += 1
            else:
                self.seen.failed += 1


class ThroughRouter:
    """Requests go to a router over several connections, in turn."""

    def __init__(self, load: Load) -> None:
        spec = load.spec
        self._load = load
        self.connections = [
            Connection(spec.addresses[index % len(spec.addresses)], time.monotonic) for index in range(spec.connections)
        ]
        self._next = 0
        self._request = inference_pb2.GenerateRequest(text=spec.prompt)
        self._request.sampling.max_tokens = spec.output_tokens
        self._request.sampling.ignore_eos = True
        self._request.sampling.temperature = 0.0
        if spec.ttft_s:
            self._request.contract.stages.add().prefill.ttft_s = spec.ttft_s
            self._request.contract.stages.add().decode.tpot_s = spec.tpot_s

    def begin(self, request_id: str, started_s: float) -> None:
        self._request.request_id = request_id
        follower = _Follower(self._load, request_id, started_s)
        connection = self.connections[self._next % len(self.connections)]
        self._next += 1
        connection.call(GENERATE, self._request.SerializeToString(), follower.message, follower.end)


@dataclass(slots=True)
class _Follower:
    load: Load
    request_id: str
    started_s: float
    worker: int = 0
    received: int = 0
    complete: bool = False

    def message(self, data: bytes, now_s: float) -> None:
        response = inference_pb2.GenerateResponse.FromString(data)
        match response.WhichOneof("event"):
            case "tokens":
                chunk = response.tokens
                token_ids = chunk.token_ids
                if chunk.index != self.received:
                    self.load.seen.wrong += 1
                if token_ids and not self.received:
                    self.load.first_token(self.request_id, self.started_s, now_s)
                    if len(token_ids) > 1:
                        self.load.tokens(self.worker, token_ids[1:], now_s)
                elif token_ids:
                    self.load.tokens(self.worker, token_ids, now_s)
                self.received += len(token_ids)
            case "admission":
                self.worker = _number(response.admission.decode_worker_id)
                self.load.seen.guaranteed += self.load.measuring and response.admission.verdict == 1
            case "finished":
                self.complete = response.finished.completion_tokens == self.received
                self.load.seen.kept += self.load.measuring and response.finished.achieved.kept

    def end(self) -> None:
        self.load.ended(complete=self.complete)


@dataclass(slots=True)
class _DirectWork:
    submit: worker_pb2.Submit
    started_s: float
    decoding: int = -1


class Direct:
    """Requests without a router: straight to the workers, prefill then decode, each pool in turn."""

    def __init__(self, load: Load) -> None:
        spec = load.spec
        self._load = load
        self._work: dict[str, _DirectWork] = {}
        self._turn = 0
        self.connections = [Connection(address, time.monotonic) for address in spec.addresses]
        hello = worker_pb2.SessionRequest(hello=worker_pb2.Hello(router_id="direct")).SerializeToString()
        self._streams = [
            connection.call(SESSION, hello, self._reader(worker), lambda: None, last=False)
            for worker, connection in enumerate(self.connections)
        ]
        # About as many tokens as the prompt has.
        self._prompt = [1] * max(1, len(spec.prompt) // 4)

    def begin(self, request_id: str, started_s: float) -> None:
        submit = worker_pb2.Submit(request_id=request_id, token_ids=self._prompt, export_kv=True)
        submit.sampling.max_tokens = self._load.spec.output_tokens
        self._work[request_id] = _DirectWork(submit, started_s)
        self._turn += 1
        self._send(self._turn % self._load.spec.prefill_workers, submit)

    def _send(self, worker: int, submit: worker_pb2.Submit) -> None:
        message = worker_pb2.SessionRequest(submit=submit).SerializeToString()
        self.connections[worker].send(self._streams[worker], message)

    def _reader(self, worker: int) -> Callable[[bytes, float], None]:
        def read(data: bytes, now_s: float) -> None:
            for output in worker_pb2.SessionResponse.FromString(data).step.outputs:
                self._output(worker, output, now_s)

        return read

    def _output(self, worker: int, output: worker_pb2.RequestOutput, now_s: float) -> None:
        work = self._work[output.request_id]
        if work.decoding < 0:
            self._load.first_token(output.request_id, work.started_s, now_s)
            if not output.HasField("kv"):
                del self._work[output.request_id]
                self._load.ended(complete=True)
                return
            pools = self._load.spec.prefill_workers, len(self.connections)
            work.decoding = pools[0] + self._turn % (pools[1] - pools[0])
            work.submit.export_kv = False
            work.submit.kv_source.CopyFrom(output.kv)
            work.submit.generated_tokens = 1
            work.submit.token_ids.extend(output.token_ids)
            self._send(work.decoding, work.submit)
            return
        self._load.tokens(worker, output.token_ids, now_s)
        if output.finish_reason:
            del self._work[output.request_id]
            self._load.ended(complete=True)


def _number(worker_id: str) -> int:
    return int(worker_id.rpartition("-")[2])


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {"count": 0, "p50_ms": 0.0, "p99_ms": 0.0}
    p50, p99 = np.percentile(np.array(seconds), (50, 99)) * 1e3
    return {"count": len(seconds), "p50_ms": float(p50), "p99_ms": float(p99)}


def main() -> None:
    raw = json.load(sys.stdin)
    load = Load(Spec(**{**raw, "addresses": tuple(raw["addresses"])}))
    cpu_s = time.process_time()
    seen = load.run()
    result = asdict(seen) | {"token": _percentiles(seen.token_s), "first": _percentiles(seen.first_s)}
    del result["token_s"], result["first_s"]
    result["generator_cpu_share"] = (time.process_time() - cpu_s) / (time.monotonic() - load.began_s)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
